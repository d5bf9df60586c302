// @ts-check
/** What the chat page asks of the server besides the socket: stored conversations and rendered Markdown. */

/**
 * @typedef {{id: string, ended_at: string | null, total_tokens: number}} Session
 * @typedef {{id: string, turn: number, turn_id: string | number, role: string, content: string,
 *   token_count: number | null, meta: Record<string, any> | null}} StoredMessage
 */

/** An answer of the server that is not the one asked for. */
export class RequestError extends Error {
  /**
   * @param {string} path
   * @param {number} status  of HTTP
   */
  constructor(path, status) {
    super(`${path}: ${status}`);
    this.status = status;
  }
}

export class Server {
  #token;

  /** @param {string | null} token */
  constructor(token) {
    this.#token = token;
  }

  /**
   * @param {string} path
   * @param {RequestInit} options
   * @returns {Promise<Response>}
   */
  request(path, options = {}) {
    const headers = new Headers(options.headers);
    if (this.#token !== null) headers.set("Authorization", `Bearer ${this.#token}`);
    return fetch(path, { ...options, headers });
  }

  /**
   * @param {{examId: number, participantId: number}} place
   * @returns {Promise<Session | undefined>}
   */
  async activeSession({ examId, participantId }) {
    /** @type {Session[]} */
    const sessions = await this.#list(`/api/sessions?exam_id=${examId}&participant_id=${participantId}`);
    return sessions.find((session) => session.ended_at === null);
  }

  /**
   * @param {string} id
   * @returns {Promise<Session>}
   */
  session(id) {
    return this.#json(`/api/sessions/${encodeURIComponent(id)}`);
  }

  /**
   * @param {string} sessionId
   * @returns {Promise<StoredMessage[]>}  in order
   */
  messages(sessionId) {
    return this.#list(`/api/sessions/${encodeURIComponent(sessionId)}/messages`);
  }

  /**
   * @param {string} markdown
   * @returns {Promise<string>}  safe HTML
   */
  async renderMarkdown(markdown) {
    const answer = await this.#json("/api/render", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ markdown }),
    });
    return answer.html;
  }

  /**
   * @param {string} path
   * @param {RequestInit} [options]
   * @returns {Promise<any>}
   */
  async #json(path, options) {
    const response = await this.request(path, options);
    if (!response.ok) throw new RequestError(path, response.status);
    return response.json();
  }

  /**
   * Every item of a list that comes in pages.
   *
   * @param {string} path
   * @returns {Promise<any[]>}
   */
  async #list(path) {
    const items = [];
    /** @type {string | null} */
    let cursor = null;
    do {
      const url = new URL(path, location.href);
      if (cursor !== null) url.searchParams.set("cursor", cursor);
      const page = await this.#json(url.pathname + url.search);
      items.push(...page.items);
      cursor = page.next;
    } while (cursor !== null);
    return items;
  }
}
