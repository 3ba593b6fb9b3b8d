// The service worker: keeps the page's files, each compared with its hash, so that it works without a network.

/* global clients */

const SITE = "@site@"; // {version, files: {path: {sha256, bytes, later}}}, written by jaxtrain

const cacheName = () => `${self.registration.scope} ${SITE.version}`;

self.addEventListener("install", (event) => event.waitUntil(keepAll()));

self.addEventListener("activate", (event) => event.waitUntil(takeOver()));

self.addEventListener("fetch", (event) => event.respondWith(answer(event.request)));

async function keepAll() {
  const now = Object.keys(SITE.files).filter((path) => !SITE.files[path].later);
  await Promise.all(now.map(keep));
  await self.skipWaiting();
}

async function takeOver() {
  for (const name of await caches.keys()) {
    if (name.startsWith(`${self.registration.scope} `) && name !== cacheName()) await caches.delete(name);
  }
  await clients.claim();
}

/** A file of the page, kept if it is the one that was exported. */
async function keep(path) {
  const url = new URL(path, self.registration.scope);
  for (const cache of ["default", "reload"]) {
    const found = await fetch(url, { cache, credentials: "omit" });
    if (found.ok && (await sha256(await found.clone().arrayBuffer())) === SITE.files[path].sha256) {
      await (await caches.open(cacheName())).put(url, found.clone());
      return found;
    }
  }
  throw new Error(`${path} is not what was exported`);
}

/** From what was kept; what is not of this page is not fetched. */
async function answer(request) {
  const url = new URL(request.url);
  const { scope } = self.registration;
  if (request.method !== "GET" || !url.href.startsWith(scope)) return Response.error();
  const path = url.pathname.slice(new URL(scope).pathname.length) || "index.html";
  if (!Object.hasOwn(SITE.files, path)) return new Response("", { status: 404, statusText: "Not Found" });
  const cache = await caches.open(cacheName());
  return (await cache.match(new URL(path, scope))) ?? (await keep(path));
}

async function sha256(bytes) {
  const found = await crypto.subtle.digest("SHA-256", bytes);
  return Array.from(new Uint8Array(found), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
