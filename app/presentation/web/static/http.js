// @ts-check
/** Requests of the browser client to the service: token, problems, and what a proxy answers in its place. */

/** @typedef {import("./turn.js").TurnError} TurnError */

/**
 * @typedef {{response: Response, problem: null} | {response: null, problem: Problem}} Answer
 * @typedef {TurnError & {retryAfterMs: number | null}} Problem  an error in the service's own words
 */

const UNAUTHENTICATED = 4401;
const FORBIDDEN = 4403;
/** No wait that somebody asks for is longer. */
const LONGEST_WAIT_MS = 60_000;

/** Nothing gets through to the service; or it refuses us, and the close code says how. */
export class LostError extends Error {
  /** @param {number | null} closeCode  that a WebSocket would have been closed with; null: no word of the service */
  constructor(closeCode) {
    super(`connection lost: ${closeCode}`);
    this.closeCode = closeCode;
  }
}

/**
 * Whether the service itself, and no page of a proxy's, answers over HTTP.
 *
 * @param {string} base  address of the service without a slash at its end
 * @param {number} patienceMs
 * @returns {Promise<boolean>}
 */
export async function isReachable(base, patienceMs) {
  const given = new AbortController();
  const timer = setTimeout(() => given.abort(), patienceMs);
  try {
    const response = await fetch(`${base}/healthz`, { cache: "no-store", redirect: "error", signal: given.signal });
    return response.ok && (await response.json()).status === "ok";
  } catch {
    return false;
  } finally {
    clearTimeout(timer);
  }
}

/**
 * @param {Response} response
 * @returns {Promise<any>}
 * @throws {LostError}  it broke off, or the service did not say this
 */
export async function jsonOf(response) {
  try {
    return await response.json();
  } catch {
    throw new LostError(null);
  }
}

/**
 * @param {number} ms
 * @returns {Promise<void>}
 */
export const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

export class Http {
  #token;
  #askToken;

  /**
   * @param {string} base  address of the service without a slash at its end
   * @param {string | undefined} token
   * @param {() => Promise<string | undefined>} askToken  for one that is still valid, when the first is no more
   */
  constructor(base, token, askToken) {
    this.base = base;
    this.#token = token;
    this.#askToken = askToken;
  }

  /**
   * @param {string} path
   * @param {RequestInit} options
   * @param {boolean} mayAskToken  whether a refused token may be exchanged for a fresh one
   * @returns {Promise<Answer>}
   * @throws {LostError}  also where `options.signal` aborts it
   */
  async call(path, options, mayAskToken = true) {
    const token = this.#token;
    const response = await this.#fetch(path, options);
    if (response.ok) return { response, problem: null };
    const problem = await problemOf(response);
    if (response.status === 401 && problem) {
      if (!mayAskToken) throw new LostError(UNAUTHENTICATED);
      this.#token = await this.#freshToken(token);
      return this.call(path, options, false);
    }
    if (response.status === 403 && problem) throw new LostError(FORBIDDEN);
    if (!problem) throw new LostError(null);
    return { response: null, problem };
  }

  /**
   * @param {string} path
   * @param {RequestInit} options
   */
  async #fetch(path, options) {
    const headers = new Headers(options.headers);
    if (this.#token !== undefined) headers.set("Authorization", `Bearer ${this.#token}`);
    try {
      return await fetch(this.base + path, { ...options, headers, cache: "no-store", redirect: "error" });
    } catch {
      throw new LostError(null);
    }
  }

  /** @param {string | undefined} refused */
  async #freshToken(refused) {
    if (this.#token !== refused) return this.#token; // another request has asked for it meanwhile
    /** @type {string | undefined} */
    let fresh;
    try {
      fresh = await this.#askToken();
    } catch {
      throw new LostError(null); // whoever hands out tokens is out of reach
    }
    if (fresh === refused) throw new LostError(UNAUTHENTICATED);
    return fresh;
  }
}

/**
 * @param {Response} response
 * @returns {Promise<Problem | null>}  null: the service did not say this
 */
async function problemOf(response) {
  const body = await response.json().catch(() => null);
  if (typeof body?.code === "string") {
    const retryAfterMs = waitOf(response.headers.get("Retry-After"));
    return { code: body.code, message: String(body.detail), retryable: Boolean(body.retryable), retryAfterMs };
  }
  if (response.status !== 413) return null;
  const message = "The message is too large for this network.";
  return { code: "message_too_large", message, retryable: false, retryAfterMs: null };
}

/** @param {string | null} retryAfter  in seconds; the service does not use the other form, a date */
function waitOf(retryAfter) {
  const seconds = Number.parseInt(retryAfter ?? "", 10);
  return Number.isNaN(seconds) ? null : Math.min(1000 * seconds, LONGEST_WAIT_MS);
}
