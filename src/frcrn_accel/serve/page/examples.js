// Recordings to try the page with; `examples/CREDITS.md` says whose they are.

import { element } from "./elements.js";
import { unreachable } from "./engine.js";

const EXAMPLES = { train: "Train", rain: "Rain", night: "Night" };

/**
 * Offer the examples.
 *
 * @param {(files: File[]) => void} onFiles Called with the one that was chosen.
 * @param {(problem: Error) => void} onProblem Called if it cannot be loaded.
 */
export function offerExamples(onFiles, onProblem) {
  for (const [name, title] of Object.entries(EXAMPLES)) {
    const button = document.createElement("button");
    button.type = "button";
    button.id = `example-${name}`;
    button.textContent = title;
    button.addEventListener("click", async () => {
      try {
        const response = await fetch(new URL(`examples/${name}.flac`, import.meta.url));
        if (!response.ok) throw new Error(`status ${response.status}`);
        onFiles([new File([await response.blob()], `${name}.flac`, { type: "audio/flac" })]);
      } catch {
        onProblem(unreachable());
      }
    });
    element("examples").append(button);
  }
}
