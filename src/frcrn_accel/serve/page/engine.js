// The engine of this page: the server that it comes from. The static site has another file in place of this one, which
// computes in the tab; its source is in `web/` of the repository.

export { LiveStream, denoise, models, notReady, traits, unreachable } from "./server.js";
