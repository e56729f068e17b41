// optuna-dashboard only says that a study could not be renamed or deleted; this says why.
const ask = window.fetch;
window.fetch = async (...request) => {
  const answer = await ask(...request);
  if (answer.headers.has("X-Refused")) {
    alert((await answer.clone().json()).reason);
  }
  return answer;
};
