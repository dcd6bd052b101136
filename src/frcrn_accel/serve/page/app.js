// The page: its two halves, what the server says of itself, and the keys.

import { element, say, show } from "./elements.js";
import { FileMode } from "./file.js";
import { LiveMode } from "./live.js";
import { models, notReady } from "./server.js";

const POLL_MS = 1000;

const isSupported =
  ["AudioContext", "WebSocket", "ResizeObserver", "HTMLDialogElement"].every((name) => name in globalThis) &&
  "throwIfAborted" in AbortSignal.prototype;
show(element("unsupported"), !isSupported);
show(element("modes"), isSupported);
if (isSupported) begin();

function begin() {
  const halves = { file: new FileMode(), live: new LiveMode() };
  let front = "file";

  const choose = (name) => {
    if (name !== front) {
      if (front === "file") halves.file.leave();
      else halves.live.stop();
    }
    front = name;
    for (const half of Object.keys(halves)) {
      const tab = element(`tab-${half}`);
      tab.setAttribute("aria-selected", String(half === front));
      tab.tabIndex = half === front ? 0 : -1;
      show(element(half), half === front);
    }
    say("");
  };
  for (const name of Object.keys(halves)) {
    const tab = element(`tab-${name}`);
    tab.addEventListener("click", () => choose(name));
    tab.addEventListener("keydown", ({ key }) => {
      if (!["ArrowLeft", "ArrowRight"].includes(key)) return;
      const other = name === "file" ? "live" : "file";
      choose(other);
      element(`tab-${other}`).focus();
    });
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || element("ask-token").open) return;
    if (!element("keys").checked) return;
    const isPress = event.target.closest("button, summary, a, select, input:not([type=radio], [type=range])");
    if (event.key === " " ? isPress : event.target.closest("select, input[type=password]")) return;
    if (halves[front].key(event.key.toLowerCase())) event.preventDefault();
  });

  describe(halves);
}

/** Show what runs there, as soon as it does. */
async function describe(halves) {
  const text = element("service");
  const write = (words, state) => {
    if (text.textContent !== words) text.textContent = words;
    text.className = `service ${state}`;
  };
  try {
    for (let reason = await notReady(); reason; reason = await notReady()) {
      write(reason, "");
      await new Promise((resolve) => setTimeout(resolve, POLL_MS));
    }
    const [model] = await models({ mayAsk: false });
    write(`${model.name} on ${model.backend}, ${model.precision}: ready`, "ready");
    for (const half of Object.values(halves)) half.setDefaultLimit(model.attenuation_limit_db);
  } catch (error) {
    if (error.status === 401) write("ready; it will ask for a token", "ready");
    else write(error.message, "failed");
  }
}
