// The page of `lineside review`. The server holds every answer; this file shows one question and sends one action.
"use strict";

const $ = (id) => document.getElementById(id);
const ZOOMS = [1, 2, 4];
const SHOWN = 12; // options that match what is typed
const NONE = "none"; // how an empty list is answered
let state = null; // as the server sent it
let chosen = new Set(); // options that are selected
let point = null; // [x, y] from 0 to 1
let zoom = 1;
let pending = null; // the action on its way; kept after a failure, so that it is sent again with the same key
let busy = false;
let shown = "";  // the question whose picture is on the screen: without it no answer is taken
let since = performance.now();

const form = () => state.question.form;
const isYesNo = () => form().options.length === 2 && ["yes", "no"].every((word) => form().options.includes(word));
const listed = () => form().options.length > 0 && (form().kind === "choice" || form().kind === "set");
const typed = () => !(form().kind === "point" || (listed() && !form().counted && form().options.length <= 9));
const plain = (text) => text.toLowerCase().replace(/\s+/g, " ").trim().replace(/\.$/, "");
const newKey = () => [...crypto.getRandomValues(new Uint8Array(12))].map((n) => n.toString(16).padStart(2, "0")).join("");

async function call(path, body) {
  const options = body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const answer = await fetch(path, options || {});
  return { status: answer.status, data: await answer.json() };
}

function banner(text) {
  $("banner").textContent = text;
  $("banner").hidden = !text;
}

// --- showing

function show(next) {
  const moved = !state || !state.question || !next.question || state.question.id !== next.question.id;
  state = next;
  pending = null;
  $("problem").textContent = "";
  const counts = state.counts;
  const done = counts["answer"] + counts["cannot tell"];
  $("person").textContent = state.person + (state.blind ? " (blind)" : "");
  $("bar").max = state.total;
  $("bar").value = done;
  $("progress").textContent = `${done} of ${state.total}` + (counts["cannot tell"] ? ` · ${counts["cannot tell"]} cannot tell` : "")
    + (counts["skip"] ? ` · ${counts["skip"]} skipped` : "");
  $("undo").disabled = !state.last;
  $("main").hidden = !state.question;
  $("end").hidden = Boolean(state.question);
  if (!state.question) {
    $("summary").textContent = `${counts["answer"]} answers, ${counts["cannot tell"]} cannot tell.`;
    return;
  }
  const question = state.question;
  $("task").textContent = `${question.task} · ${question.frame} · ${question.place + 1} of ${state.total}`;
  $("question").textContent = question.question;
  $("why").textContent = question.why;
  $("hidden").hidden = !question.hidden;
  $("said").replaceChildren(...question.said.map(heard));
  $("mine").textContent = question.mine ? "You: " + (question.mine.action === "answer" ? question.mine.answer : question.mine.action) : "";
  $("accept").firstChild.textContent = state.reveal ? "Next " : "Accept ";
  if (moved) {
    since = performance.now();
    zoom = 1;
    $("picture").style.visibility = "hidden";  // never the picture of the question before
    $("picture").src = "picture?of=" + encodeURIComponent(question.id);
    if (state.next_picture) new Image().src = "picture?of=" + encodeURIComponent(state.next_picture);
  }
  fill(question.proposal);
}

function heard(said) {
  const row = document.createElement("li");
  const who = document.createElement("span");
  who.className = "who";
  who.textContent = said.by + (said.name ? " " + said.name : "");
  const what = document.createElement("span");
  what.textContent = (said.answer || "no answer") + (said.confidence === null ? "" : ` (${(100 * said.confidence).toFixed(0)}% sure)`);
  if (said.same !== null) {
    what.className = said.same ? "same" : "other";
    what.textContent += said.same ? " · as you" : " · not as you";
  }
  row.append(who, what);
  if (said.trace) {
    const trace = document.createElement("span");
    trace.className = "trace";
    trace.textContent = said.trace;
    row.append(trace);
  }
  return row;
}

function fill(answer) {
  const kind = form().kind;
  chosen = new Set();
  point = null;
  if (kind === "point" && answer) point = answer.split(",").map(Number);
  if (kind === "set") chosen = new Set(form().options.filter((option) => answer.split(",").map(plain).includes(plain(option))));
  if (kind === "set" && answer === NONE) chosen.add(NONE);
  if (kind === "choice" && answer) chosen.add(answer);
  $("field").hidden = !typed();
  $("expected").textContent = listed() && kind === "choice" ? `Type to find one of ${form().options.length} options` : "Expected: " + state.question.expected;
  $("text").value = typed() ? answer : "";
  $("text").disabled = state.reveal;
  $("text").inputMode = kind === "number" && !form().unit ? "decimal" : "text";
  $("stage").classList.toggle("point", kind === "point");
  $("help").textContent = state.reveal ? "Your answer is saved. Enter goes on; U takes it back." : kind === "point" ? "Click on the picture or move the mark with the arrow keys (Shift: ten times as far). Enter accepts."
    : typed() ? "Type the answer. Esc leaves the field, so that the letters are commands again (or hold Alt)."
    : kind === "set" ? "1 to 9 choose, 0 is none. Enter accepts." : (isYesNo() ? "Y and N or 1 and 2" : "1 to 9") + " choose. Enter accepts.";
  drawOptions();
  drawPicture();
  if (typed() && !state.reveal && matchMedia("(min-width: 761px)").matches) {
    $("text").focus();
    $("text").select();
  } else document.activeElement.blur();
}

function shownOptions() {
  if (!listed()) return [];
  if (form().kind === "set" && !typed()) return [...form().options, NONE];
  if (!typed() || form().kind === "set") return form().options;
  const begun = $("text").value.trim().toLowerCase();
  return form().options.filter((option) => option.toLowerCase().includes(begun)).slice(0, SHOWN);
}

function drawOptions() {
  const buttons = shownOptions().map((option, index) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(option);
    if (!typed()) {
      const key = document.createElement("kbd");
      key.textContent = isYesNo() ? option[0].toUpperCase() : String(form().kind === "set" && option === NONE ? 0 : index + 1);
      button.append(" ", key);
    }
    button.disabled = state.reveal;
    button.setAttribute("aria-pressed", String(typed() ? option === $("text").value : chosen.has(option)));
    button.addEventListener("click", () => choose(option));
    return button;
  });
  $("options").replaceChildren(...buttons);
}

function choose(option) {
  if (form().kind === "set" && typed()) {
    const before = $("text").value.trim();
    $("text").value = before && before !== NONE ? `${before}, ${option}` : option;
  } else if (typed()) $("text").value = option;
  else if (form().kind === "set" && option !== NONE) {
    chosen.delete(NONE);
    if (!chosen.delete(option)) chosen.add(option);
  } else chosen = new Set([option]);
  drawOptions();
}

function drawPicture() {
  const picture = $("picture"), stage = $("stage");
  if (!picture.naturalWidth) return;
  const tall = matchMedia("(max-width: 760px)").matches ? innerHeight * 0.44 : stage.clientHeight;
  const fit = Math.min((stage.clientWidth - 16) / picture.naturalWidth, (tall - 16) / picture.naturalHeight);
  picture.style.width = `${Math.max(1, Math.round(picture.naturalWidth * fit * zoom))}px`;
  $("marker").hidden = !point;
  if (point) {
    $("marker").style.left = `${100 * point[0]}%`;
    $("marker").style.top = `${100 * point[1]}%`;
  }
}

function setZoom(next, x = 0.5, y = 0.5) {
  zoom = next;
  drawPicture();
  const stage = $("stage"), picture = $("picture");
  stage.scrollLeft = x * picture.clientWidth - stage.clientWidth / 2;
  stage.scrollTop = y * picture.clientHeight - stage.clientHeight / 2;
}

const nextZoom = () => ZOOMS[(ZOOMS.indexOf(zoom) + 1) % ZOOMS.length];

// --- sending

function given() {
  if (form().kind === "point") return point ? point.map((v) => v.toFixed(3)).join(", ") : "";
  if (typed()) {
    const found = form().kind === "choice" ? shownOptions() : [];
    return found.length === 1 ? found[0] : $("text").value;
  }
  if (form().kind === "set" && !chosen.has(NONE)) return form().options.filter((option) => chosen.has(option)).join(", ");
  return [...chosen][0] || "";
}

async function act(action) {
  if (busy || !state || !state.question) return;
  if (action === "answer" && state.reveal) return go(null);
  if (action === "answer" && shown !== state.question.id) {
    $("problem").textContent = "The picture is not shown yet. An answer needs it; C (cannot tell) and S (skip) do not.";
    return;
  }
  const answer = action === "answer" ? given() : "";
  if (action === "answer" && !answer.trim()) {
    $("problem").textContent = "Choose, type or click an answer first, or press C where nobody can tell.";
    return;
  }
  const same = pending && pending.question === state.question.id && pending.action === action && pending.answer === answer;
  const seconds = Math.round((performance.now() - since) / 100) / 10;
  if (!same) pending = { question: state.question.id, revision: state.question.revision, action, answer, key: newKey(), seconds };
  await send("answer", pending);
}

async function undo() {
  if (!busy && state && state.last) await send("undo", { last: state.last, key: newKey() });
}

async function go(step) {
  if (busy) return;
  const at = state && state.question && step !== null ? `?at=${encodeURIComponent(state.question.id)}&step=${step}` : "";
  await send("state" + at);
}

function setBusy(on) {
  busy = on;
  document.body.setAttribute("aria-busy", String(on));
}

async function send(path, body) {
  setBusy(true);
  $("problem").textContent = "";
  try {
    const { status, data } = await call(path, body);
    banner("");
    if (status === 200) show(data);
    else if (status === 409) {
      show(data.state);
      banner(data.error);
    } else $("problem").textContent = "Not saved: " + data.error;
  } catch {
    banner("Not saved: the program does not answer. Your answers before this one are kept. If it has stopped, run the same command again and open the new address.");
  } finally {
    setBusy(false);
  }
}

async function finish() {
  try {
    await call("finish", {});
    banner("Finished. The program has ended; this window can be closed.");
    $("main").hidden = true;
    $("end").hidden = true;
  } catch {
    banner("The program has ended already.");
  }
}

// --- keys and clicks

function move(event) {
  const by = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (!by || form().kind !== "point" || state.reveal) return false;
  const step = event.shiftKey ? 0.05 : 0.005;
  point = (point || [0.5, 0.5]).map((v, i) => Math.min(1, Math.max(0, v + by[i] * step)));
  drawPicture();
  return true;
}

function command(event) {
  const actions = {
    s: () => act("skip"), c: () => act("cannot tell"), u: undo, b: () => go(-1), f: () => go(1),
    z: () => setZoom(nextZoom(), ...(point || [])),
  };
  const letter = event.altKey && event.code.startsWith("Key") ? event.code.slice(3).toLowerCase() : event.key.toLowerCase();
  if (!actions[letter]) return false;
  actions[letter]();
  return true;
}

function option(event) {
  if (!state.question || typed() || state.reveal || form().kind === "point") return false;
  const options = form().options;
  const number = /^[0-9]$/.test(event.key) ? Number(event.key) : null;
  if (number === 0 && form().kind === "set") choose(NONE);
  else if (number && options[number - 1]) return choose(options[number - 1]), true;
  else if (isYesNo() && /^[yn]$/i.test(event.key)) return choose(event.key.toLowerCase() === "y" ? "yes" : "no"), true;
  else return false;
  return true;
}

document.addEventListener("keydown", (event) => {
  if (!state || event.ctrlKey || event.metaKey || event.isComposing) return;
  // A field that has just been hidden keeps the focus until the browser draws the page again: its keys are commands.
  const inField = event.target === $("text") && !$("field").hidden && !$("main").hidden;
  if (event.key === "Enter" && (inField || event.target.tagName !== "BUTTON")) {
    event.preventDefault();
    if (!event.repeat) act("answer");
  } else if (event.key === "Escape" && inField) $("text").blur();
  else if (inField && !event.altKey) return;
  else if (event.repeat && !event.key.startsWith("Arrow")) return;
  else if (option(event) || (state.question && move(event)) || command(event)) event.preventDefault();
});

$("text").addEventListener("input", drawOptions);
$("picture").addEventListener("load", () => {
  shown = new URL($("picture").src).searchParams.get("of");
  $("picture").style.visibility = "visible";
  drawPicture();
});
$("picture").addEventListener("error", () => { $("problem").textContent = "The picture cannot be shown: it is missing or damaged."; });
$("picture").addEventListener("click", (event) => {
  const box = $("picture").getBoundingClientRect();
  const place = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height].map((v) => Math.min(1, Math.max(0, v)));
  if (!state || !state.question) return;
  if (form().kind !== "point") return setZoom(nextZoom(), ...place);
  if (state.reveal) return;
  point = place;
  drawPicture();
});
addEventListener("resize", () => state && state.question && drawPicture());
for (const [id, action] of Object.entries({
  accept: () => act("answer"), unsure: () => act("cannot tell"), skip: () => act("skip"), undo, back: () => go(-1), forward: () => go(1),
  zoom: () => setZoom(nextZoom(), ...(point || [])), again: undo, finish,
})) $(id).addEventListener("click", action);
go(null);
