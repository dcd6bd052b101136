// Drop a file anywhere on the page.

import { element } from "./elements.js";
import { Problem } from "./server.js";

/**
 * Accept dropped files.
 *
 * @param {(file: File) => void} onFile Called with the file.
 * @param {(problem: Problem) => void} onProblem Called if something else is dropped.
 */
export function acceptDrops(onFile, onProblem) {
  let entered = 0; // nested elements that the dragged file is over
  const mark = () => element("drop").classList.toggle("over", entered > 0);
  document.addEventListener("dragenter", (event) => {
    event.preventDefault();
    entered++;
    mark();
  });
  document.addEventListener("dragleave", () => {
    entered--;
    mark();
  });
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    entered = 0;
    mark();
    const { files, items } = event.dataTransfer;
    const isFolder = [...items].some((item) => item.webkitGetAsEntry?.()?.isDirectory);
    if (files.length === 1 && !isFolder) onFile(files[0]);
    else onProblem(new Problem("Not a file", "Drop one audio file. For folders, use frcrn-accel denoise."));
  });
}
