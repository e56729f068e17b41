// optuna-dashboard lists a study by its name alone; this adds metric, budget, state and best value.
const REFRESH_MS = 10000;
let states = {};

function show() {
  for (const link of document.querySelectorAll('a[href*="/studies/"]')) {
    const heading = link.querySelector("h5");
    const lines = states[link.getAttribute("href").split("/studies/")[1]];
    if (!heading || !lines) continue;
    let added = link.querySelector(".dlnn-state");
    if (!added) {
      added = document.createElement("div");
      added.className = "dlnn-state";
      added.style.cssText = "margin-top: 8px; font-size: 14px; line-height: 1.5; white-space: pre-line";
      heading.parentElement.append(added);
    }
    const text = lines.join("\n");
    if (added.textContent !== text) added.textContent = text;
  }
}

async function refresh() {
  if (document.hidden || !document.querySelector('a[href*="/studies/"] h5')) return;
  try {
    const answer = await fetch("/studies.json");
    if (answer.ok) states = await answer.json();
    show();
  } catch { /* the server is away: the next round may find it */ }
}

let waits = null;
new MutationObserver(() => {
  show();
  // A list that has just come up is filled at once.
  if (!waits && document.querySelector('a[href*="/studies/"]:not(:has(.dlnn-state)) h5')) {
    waits = setTimeout(() => { waits = null; }, 1000);
    refresh();
  }
}).observe(document.body, { childList: true, subtree: true });
setInterval(refresh, REFRESH_MS);
refresh();
