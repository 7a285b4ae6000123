/* The two questions that the page asks: for a token, and whether a job is really to be cancelled. */

import { byId, say, setText } from "./dom.js";

/** Ask for a token; resolves to it. `problem` says why it is asked again. */
export function askToken(problem) {
  const dialog = byId("token-dialog");
  const input = byId("token");
  say(byId("token-problem"), problem);
  input.value = "";
  if (!dialog.open) dialog.showModal();
  return new Promise((resolve) => {
    dialog.onclose = () => resolve(input.value.trim());
  });
}

/** Ask whether to go on; resolves to null for no, else to `{ option }`: whether the box, if there was one, was ticked. */
export function confirm({ title, text, yes, option = "" }) {
  const dialog = byId("confirm-dialog");
  const optionLine = byId("confirm-option");
  const box = optionLine.querySelector("input");
  setText(byId("confirm-title"), title);
  setText(byId("confirm-text"), text);
  setText(byId("confirm-yes"), yes);
  setText(optionLine.querySelector("span"), option);
  optionLine.hidden = !option;
  box.checked = false;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.onclose = () => resolve(dialog.returnValue === "yes" ? { option: box.checked } : null);
  });
}
