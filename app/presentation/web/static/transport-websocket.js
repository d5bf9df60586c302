// @ts-check
/** The protocol's frames over one WebSocket. */

/** @typedef {import("./turn.js").Frame} Frame */
/** @typedef {import("./connection.js").Transport} Transport */

/** What may stand in a subprotocol; a token with other characters goes into a first frame. */
const SUBPROTOCOL = /^[\w!#$%&'*+.^`|~-]+$/;

/** @implements {Transport} */
export class WebSocketTransport {
  /** @type {import("./connection.js").TransportKind} */
  kind = "websocket";
  onopen = () => {};
  onkind = () => {};
  /** @type {(frame: Frame) => void} */
  onframe = () => {};
  /** @type {(closeCode: number | null) => void} */
  onlost = () => {};
  #socket;

  /**
   * @param {string} url
   * @param {string | undefined} token
   */
  constructor(url, token) {
    const bySubprotocol = token !== undefined && SUBPROTOCOL.test(token);
    this.#socket = new WebSocket(url, bySubprotocol ? ["turnstone.v1", `bearer.${token}`] : []);
    this.#socket.onopen = () => {
      if (token !== undefined && !bySubprotocol) this.send({ type: "auth", token });
      this.onopen();
    };
    this.#socket.onmessage = (event) => this.#read(event.data);
    this.#socket.onclose = (event) => this.onlost(event.code);
  }

  /** @param {Frame} frame */
  send(frame) {
    this.#socket.send(JSON.stringify(frame));
  }

  close() {
    // a dead connection's own close event may take minutes
    this.#socket.onopen = this.#socket.onmessage = this.#socket.onclose = null;
    this.#socket.close();
  }

  /** @param {unknown} data */
  #read(data) {
    /** @type {Frame} */
    let frame;
    try {
      frame = JSON.parse(String(data));
    } catch {
      return; // no frame of this protocol
    }
    this.onframe(frame);
  }
}
