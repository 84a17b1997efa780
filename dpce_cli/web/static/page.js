"use strict";
// The address of the page holds the search: it can be kept, shared and gone back to. A dropped photo is not kept.
const $ = (selector) => document.querySelector(selector);
const COUNT = 60, MOST = 1000; // the server gives no more
let hits = [], shown = -1, upload = null, latest = 0;

const address = () => new URLSearchParams(location.search);

function go(change) {
  const next = address();
  for (const [key, value] of Object.entries(change)) {
    next.delete(key);
    for (const one of [value].flat()) if (one) next.append(key, one);
  }
  history.pushState(null, "", "?" + next);
  show();
}

async function show() {
  const asked = address();
  $("#text").value = asked.get("text") || "";
  $("#gallery").value = asked.get("gallery") || $("#gallery").value;
  $("#sure").value = asked.get("sure") || 0;
  $("#percent").value = $("#sure").value + " %";
  chips(asked);
  hits = [];
  $("#hits").replaceChildren();
  $("#more").hidden = true;
  if (!upload && !asked.get("text") && !asked.get("like")) {
    say("");
    return;
  }
  await load();
}

function chips(asked) {
  const all = ["plus", "minus"].flatMap((kind) => asked.getAll(kind).map((text) => [kind, text]));
  if (asked.get("like")) all.unshift(["like", "photos like one"]);
  $("#chips").replaceChildren(...all.map(([kind, text]) => {
    const item = document.createElement("li"), button = document.createElement("button");
    button.type = "button";
    button.textContent = { plus: "+ ", minus: "− ", like: "" }[kind] + text + " ✕";
    button.setAttribute("aria-label", `Remove the term ${text}`);
    button.onclick = () => go({ [kind]: kind === "like" ? "" : address().getAll(kind).filter((one) => one !== text) });
    item.append(button);
    return item;
  }));
}

async function load() {
  const mine = ++latest;
  await ready;
  const asked = address();
  asked.set("gallery", $("#gallery").value);
  asked.set("first", hits.length);
  asked.set("count", Math.min(COUNT, MOST - hits.length));
  say("Searching…");
  $("#more").hidden = true;
  let answer;
  try {
    answer = await fetch("/search?" + asked, upload ? { method: "POST", body: upload } : {});
  } catch {
    return say("The server does not answer. Is dpce serve still running?");
  }
  if (mine !== latest) return;
  if (!answer.ok) return say(await answer.text());
  const found = await answer.json(), sure = Number($("#sure").value) / 100;
  $(".sure").hidden = !found.hits.some((hit) => hit.relevance !== null) && !hits.length;
  const fresh = found.hits.filter((hit) => hit.relevance === null || hit.relevance >= sure);
  const start = hits.length;
  hits.push(...fresh);
  $("#hits").append(...fresh.map((hit, index) => tile(hit, start + index)));
  $("#more").hidden = fresh.length < COUNT || hits.length >= MOST;
  const what = found.kind === "photos" ? "photos" : "sentences";
  const none = found.hits.length ? `Nothing found that is at least ${$("#sure").value} % sure; the best is ${percent(found.hits[0])}.` : "Nothing found.";
  const count = $("#more").hidden ? `${hits.length} ${what}` : `The first ${hits.length} ${what}`;
  say([hits.length ? count : none, ...found.notes].join(" · "));
}

const percent = (hit) => (hit.relevance === null ? "" : Math.round(100 * hit.relevance) + " %");

function tile(hit, index) {
  const item = document.createElement("li");
  if (hit.caption) {
    item.className = "sentence";
    item.textContent = `${hit.caption} ${percent(hit)}`;
    return item;
  }
  const button = document.createElement("button"), image = document.createElement("img"), mark = document.createElement("span");
  button.type = "button";
  button.setAttribute("aria-label", `${hit.rank}: ${hit.name} ${percent(hit)}`);
  button.onclick = () => open(index);
  image.loading = "lazy";
  image.alt = "";
  image.src = source(hit, "small");
  image.onload = () => item.style.setProperty("--ratio", Math.min(4, Math.max(0.4, image.naturalWidth / image.naturalHeight)));
  image.onerror = () => {
    const failed = document.createElement("span");
    failed.className = "failed";
    failed.textContent = `${hit.name} cannot be shown`;
    image.replaceWith(failed);
  };
  mark.className = "percent";
  mark.textContent = percent(hit);
  button.append(image);
  if (mark.textContent) button.append(mark);
  item.append(button);
  return item;
}

async function openNext() {
  if (shown + 1 === hits.length && !$("#more").hidden) await load();
  open(shown + 1);
}

const source = (hit, size) => `/photo/${encodeURIComponent($("#gallery").value)}/${size}/${hit.key}`;

function open(index) {
  if (index < 0 || index >= hits.length) return;
  shown = index;
  const hit = hits[index], dialog = $("#large");
  dialog.querySelector("img").src = source(hit, "large");
  dialog.querySelector("img").alt = hit.name;
  dialog.querySelector(".name").textContent = [hit.name, hit.date, percent(hit)].filter(Boolean).join(" · ");
  dialog.querySelector(".path").textContent = hit.path;
  plain();
  captions();
  if (!dialog.open) dialog.showModal();
}

function plain() { // the photo without its heat map
  const button = $("#large button[name=why]");
  button.hidden = Boolean(upload) || !address().get("text");
  button.setAttribute("aria-pressed", "false");
  $("#large .why").hidden = true;
}

async function why() {
  const button = $("#large button[name=why]"), image = $("#large img"), hit = hits[shown], text = $("#large .why");
  if (button.getAttribute("aria-pressed") === "true") {
    image.src = source(hit, "large");
    return plain();
  }
  const asked = new URLSearchParams({ text: address().get("text") });
  const at = (what) => `/why/${encodeURIComponent($("#gallery").value)}/${hit.key}/${what}?${asked}`;
  button.setAttribute("aria-pressed", "true");
  text.hidden = false;
  text.textContent = "Computing…";
  let answer, found;
  try {
    answer = await fetch(at("words"));
    found = answer.ok ? await answer.json() : await answer.text();
  } catch {
    found = "The server does not answer. Is dpce serve still running?";
  }
  if (hit !== hits[shown] || button.getAttribute("aria-pressed") !== "true") return;
  if (!found.words) {
    text.textContent = found;
    return;
  }
  image.src = at("heat");
  text.replaceChildren(...found.words.flatMap((one) => [shaded(one), " "]));
  const ignored = found.words.filter((one) => one.share === null).map((one) => one.word);
  if (ignored.length) text.append(`Ignored: ${ignored.join(", ")}. `);
  text.append(found.where ? `Strongest part: ${found.where}.` : "Which part of the photo matters cannot be said for this image CNN.");
}

function shaded({ word, share, strength, is_known }) {
  const mark = document.createElement("span"), colour = strength > 0 ? "240 120 20" : "70 130 220";
  mark.className = share === null ? "word faint" : "word";
  mark.textContent = word;
  mark.title = share !== null ? `Without this word: ${(-share).toFixed(3)}` : is_known ? "not read" : "unknown, ignored";
  mark.style.backgroundColor = `rgb(${colour} / ${Math.abs(0.75 * strength)})`;
  return mark;
}

const say = (text) => { $("#status").textContent = text; };

function search(photo) {
  upload = photo;
  if (photo) go({ text: "", like: "" });
}

$("#ask").onsubmit = (event) => {
  event.preventDefault();
  upload = null;
  go({ text: $("#text").value.trim(), like: "", gallery: $("#gallery").value });
};
$("#terms").onsubmit = (event) => {
  event.preventDefault();
  const kind = event.submitter && event.submitter.name === "minus" ? "minus" : "plus", text = $("#term").value.trim();
  if (!text) return;
  $("#term").value = "";
  go({ [kind]: [...address().getAll(kind), text] });
};
$("#gallery").onchange = () => go({ gallery: $("#gallery").value, like: "" });
$("#sure").oninput = () => { $("#percent").value = $("#sure").value + " %"; };
$("#sure").onchange = () => go({ sure: $("#sure").value === "0" ? "" : $("#sure").value });
$("#more button").onclick = async () => {
  const next = hits.length;
  await load();
  $("#hits").children[next]?.querySelector("button")?.focus(); // the button has gone
};
new IntersectionObserver(([more]) => { if (more.isIntersecting) load(); }, { rootMargin: "600px" }).observe($("#more"));
$("#file").onchange = () => { if ($("#file").files.length) search($("#file").files[0]); };
$("#large").onclick = (event) => {
  const name = event.target.name;
  if (event.target === $("#large") || name === "close") $("#large").close();
  if (name === "before") open(shown - 1);
  if (name === "after") openNext();
  const copied = { copy: "path", reveal: "reveal" }[name];
  if (copied) navigator.clipboard.writeText(hits[shown][copied]).then(() => { event.target.textContent = "Copied"; });
  if (name === "why") why();
  if (name === "like") {
    const key = hits[shown].key;
    upload = null;
    $("#large").close();
    go({ like: key, text: "" });
  }
};
$("#large").onkeydown = (event) => {
  if (event.target.tagName === "INPUT") return;
  if (event.key === "ArrowLeft") open(shown - 1);
  if (event.key === "ArrowRight") openNext();
};
$("#large").onclose = () => {
  $("#large button[name=copy]").textContent = "Copy path";
  $("#large button[name=reveal]").textContent = "Copy command to open folder";
  const opener = $("#hits").children[shown];
  if (opener) opener.querySelector("button")?.focus();
};
document.ondragover = (event) => { event.preventDefault(); document.body.classList.add("over"); };
document.ondragleave = () => document.body.classList.remove("over");
document.ondrop = (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  if (event.dataTransfer.files.length) search(event.dataTransfer.files[0]);
};
document.onpaste = (event) => { if (event.clipboardData.files.length) search(event.clipboardData.files[0]); };
window.onpopstate = () => { upload = null; $("#large").close(); show(); };

async function state() {
  const { galleries } = await (await fetch("/state")).json();
  const select = $("#gallery"), names = galleries.map((one) => one.name);
  if ([...select.options].map((option) => option.value).join() !== names.join()) {
    const chosen = address().get("gallery") || names[0];
    select.replaceChildren(...names.map((name) => new Option(name, name, false, name === chosen)));
  }
  $("#state").textContent = galleries.map((one) => [
    `${one.name}: ${one.items.toLocaleString()} ${one.kind}`,
    one.pending ? `${one.pending.toLocaleString()} are still being indexed` : "",
    one.problems ? `${one.problems.toLocaleString()} cannot be read, the first because: ${one.first_problems[0].reason}` : "",
  ].filter(Boolean).join(", ")).join(" · ");
  return galleries.some((one) => one.pending);
}

async function watch() {
  const isBusy = await state().catch(() => true);
  setTimeout(watch, isBusy ? 3000 : 30000);
}
const ready = watch();
if (location.search) ready.then(show); // else the person may be typing already
