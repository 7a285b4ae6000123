/* The files of a job's result, to be downloaded. */

import { getBlob, hasToken, jobPath } from "./api.js";
import { el, say, setText } from "./dom.js";
import { bytes } from "./format.js";

/** Show the files of `/v1/jobs/{id}/artifacts`. */
export function showFiles(box, id, files) {
  const problem = el("p", { class: "problem", role: "alert", hidden: true });
  const items = files.map((file) => {
    const path = jobPath(id, `/artifacts/${file.name.split("/").map(encodeURIComponent).join("/")}`);
    return el("li", {}, downloadLink(path, file.name.split("/").at(-1), file.name, problem), el("span", {}, bytes(file.bytes)));
  });
  const all = downloadLink(jobPath(id, "/artifacts.zip"), `${id}.zip`, "Everything as a zip", problem);
  box.replaceChildren(el("ul", { class: "files" }, el("li", { class: "all" }, all), ...items), problem);
}

/* Without a token the browser downloads by itself, however large the file; with one, only a request of ours can carry it. */
function downloadLink(path, fileName, text, problem) {
  const link = el("a", { href: path, download: fileName }, text);
  link.addEventListener("click", (event) => {
    if (!hasToken() || link.dataset.isBusy) return;
    event.preventDefault();
    link.dataset.isBusy = "yes";
    download(path, fileName)
      .then(() => say(problem, ""), (error) => say(problem, `${fileName}: ${error.message}`))
      .finally(() => delete link.dataset.isBusy);
    setText(problem, "");
  });
  return link;
}

async function download(path, fileName) {
  const address = URL.createObjectURL(await getBlob(path));
  el("a", { href: address, download: fileName }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60000);
}
