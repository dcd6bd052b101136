// The page: its two tabs, the state of the server, and the keys.

import { element, say, show } from "./elements.js";
import { FileMode } from "./file.js";
import { LiveMode } from "./live.js";
import { models, notReady, traits } from "./engine.js";

const POLL_MS = 1000;

const isSupported =
  ["AudioContext", "WebSocket", "ResizeObserver", "HTMLDialogElement"].every((name) => name in globalThis) &&
  "throwIfAborted" in AbortSignal.prototype;
show(element("unsupported"), !isSupported);
show(element("modes"), isSupported);
if (isSupported) begin();

function begin() {
  element("privacy").textContent = traits.privacy;
  element("service").textContent = traits.connecting;
  const tabs = { file: new FileMode(), live: new LiveMode() };
  let selected = "file";

  const choose = (name) => {
    if (name !== selected) {
      if (selected === "file") tabs.file.leave();
      else tabs.live.stop();
    }
    selected = name;
    for (const each of Object.keys(tabs)) {
      const tab = element(`tab-${each}`);
      tab.setAttribute("aria-selected", String(each === selected));
      tab.tabIndex = each === selected ? 0 : -1;
      show(element(each), each === selected);
    }
    say("");
  };
  for (const name of Object.keys(tabs)) {
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
    if (tabs[selected].key(event.key.toLowerCase())) event.preventDefault();
  });

  describe(tabs);
}

/** Show which model the server runs, once it is ready. */
async function describe(tabs) {
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
    for (const tab of Object.values(tabs)) tab.setDefaults(model);
  } catch (error) {
    if (error.status === 401) write("ready; a token is required", "ready");
    else write(error.message, "failed");
  }
}
