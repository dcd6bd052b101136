// Drop files anywhere on the page.

import { element } from "./elements.js";
import { Problem } from "./problem.js";

/**
 * Accept dropped files.
 *
 * @param {(files: File[]) => void} onFiles Called with the files.
 * @param {(problem: Problem) => void} onProblem Called if something else is dropped.
 */
export function acceptDrops(onFiles, onProblem) {
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
    if (files.length && !isFolder) onFiles([...files]);
    else onProblem(new Problem("Not a file", "Drop audio files or films. For folders, use frcrn-accel denoise."));
  });
}
