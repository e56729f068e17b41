// optuna-dashboard only says that a study could not be renamed or deleted; this says why.
const send = XMLHttpRequest.prototype.send;
XMLHttpRequest.prototype.send = function (...body) {
  this.addEventListener("load", () => {
    if (this.getResponseHeader("X-Refused") !== null) {
      alert(JSON.parse(this.responseText).reason);
    }
  });
  return send.apply(this, body);
};
