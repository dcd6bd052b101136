// Seek in the pictures, by pointer and keyboard.

const STEP_S = 1;
const SHIFT_STEP_S = 5;
const PAGE_S = 10;

/**
 * Make an element seek in a player.
 *
 * @param {HTMLElement} tracks The pictures.
 * @param {import("./axis.js").TimeAxis} axis Theirs.
 * @param {() => import("./player.js").Player} player
 * @param {() => boolean} canScrub Whether a movement of the pointer seeks, and not only a click.
 */
export function acceptSeeking(tracks, axis, player, canScrub) {
  const seek = (event) => player().seek(axis.timeAt(event.clientX));
  tracks.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    tracks.setPointerCapture(event.pointerId);
    seek(event);
  });
  tracks.addEventListener("pointermove", (event) => tracks.hasPointerCapture(event.pointerId) && canScrub() && seek(event));
  tracks.addEventListener("keydown", (event) => {
    const { positionS, durationS } = player();
    const stepS = event.shiftKey ? SHIFT_STEP_S : STEP_S;
    const to = {
      ArrowLeft: positionS - stepS,
      ArrowDown: positionS - stepS,
      ArrowRight: positionS + stepS,
      ArrowUp: positionS + stepS,
      PageDown: positionS - PAGE_S,
      PageUp: positionS + PAGE_S,
      Home: 0,
      End: durationS,
    }[event.key];
    if (to === undefined || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    player().seek(to);
  });
}
