// Requests to the server, as promises. A failure is a ServerError with a message for the user.

export class ServerError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

export const GONE = 410;

const BUSY = 503;
const TRIES = 10; // of a request while the server is busy, one per second

async function send(path, { body = null, headers = {}, method = "POST" } = {}) {
  let response;
  for (let tries = 1; ; tries++) {
    try {
      response = await fetch(path, { method, body, headers: { "X-Promise": "1", ...headers } });
    } catch {
      throw new ServerError("The server does not respond. Is promise-app still running?", 0);
    }
    if (response.status !== BUSY || tries === TRIES) break;
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
  if (response.ok) return response;
  const isJson = response.headers.get("content-type")?.startsWith("application/json");
  const message = isJson ? (await response.json()).error : null;
  throw new ServerError(message ?? `The server returned status ${response.status}.`, response.status);
}

const toPoints = (points) => ({ points: points.map((p) => [p.x, p.y]), labels: points.map((p) => p.label) });

function toJson(step, more = {}) {
  const lesions = step.lesions.map(({ points, box }) => ({ ...toPoints(points), box }));
  const { maskIndex, fuse, automatic } = step;
  const clicks = step.clicks.length ? toPoints(step.clicks) : null;
  return JSON.stringify({ lesions, mask_index: maskIndex, fuse, automatic, clicks, ...more });
}

export const about = async () => (await send("/api/about", { method: "GET" })).json();

const ofNet = (net) => `net=${encodeURIComponent(net)}`;

export const estimates = async (after, net) => (await send(`/api/estimates?after=${after}&${ofNet(net)}`, { method: "GET" })).json();

export const openFile = async (file, net) => {
  const headers = { "X-Name": encodeURIComponent(file.name ?? "image"), "Content-Type": "application/octet-stream" };
  return (await send(`/api/images?${ofNet(net)}`, { body: file, headers })).json();
};

export const openSample = async (number, net) => (await send(`/api/samples/${number}?${ofNet(net)}`)).json();
export const automatic = async (key) => (await send(`/api/images/${key}/automatic`)).json();
export const predict = async (key, step) => (await send(`/api/images/${key}/predict`, { body: toJson(step) })).json();

// The result as a file of the kind "mask", "overlay" or "prompts".
export const file = async (key, step, kind, more = {}) =>
  (await send(`/api/images/${key}/${kind}`, { body: toJson(step, more) })).blob();

// A beacon is sent even while the page is being closed.
export const close = (key) => navigator.sendBeacon(`/api/images/${key}/close`);
