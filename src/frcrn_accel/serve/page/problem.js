// Errors to show to the user.

/** What happened and what to do. `status` is that of the server's answer; 0 without one. */
export class Problem extends Error {
  constructor(title, detail, status = 0) {
    super(detail);
    this.title = title;
    this.status = status;
  }
}
