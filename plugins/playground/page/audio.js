// Sound, shown: a player with the wave of what it plays. A click in the wave goes there.

import { h } from "./dom.js";

const BARS = 160;

/** A player for `source`, whose wave is drawn once it is decoded. */
export function waveform(source) {
  const player = h("audio", { src: source, controls: true, preload: "metadata" });
  const canvas = h("canvas", { class: "wave", width: BARS * 4, height: 96, "aria-hidden": "true" });
  let peaks;
  const draw = () => {
    if (!peaks) return;
    const pen = canvas.getContext("2d");
    const style = getComputedStyle(canvas);
    const played = player.duration ? (player.currentTime / player.duration) * BARS : 0;
    pen.clearRect(0, 0, canvas.width, canvas.height);
    peaks.forEach((peak, i) => {
      pen.fillStyle = i < played ? style.accentColor : style.color;
      const height = Math.max(2, peak * canvas.height);
      pen.fillRect(i * 4, (canvas.height - height) / 2, 3, height);
    });
  };
  player.addEventListener("timeupdate", draw);
  canvas.addEventListener("click", (event) => {
    if (player.duration) player.currentTime = (event.offsetX / canvas.clientWidth) * player.duration;
  });
  peaksOf(source).then((found) => {
    peaks = found;
    draw();
  }, () => canvas.remove());
  return h("div", { class: "sound" }, canvas, player);
}

/** The loudest sample of each bar, the loudest of all being 1. */
async function peaksOf(source) {
  const data = await (await fetch(source)).arrayBuffer();
  const sound = await new OfflineAudioContext(1, 1, 22_050).decodeAudioData(data);
  const samples = sound.getChannelData(0);
  const width = Math.max(1, Math.floor(samples.length / BARS));
  const peaks = Array.from({ length: BARS }, (_, bar) => {
    let peak = 0;
    for (let i = bar * width; i < Math.min(samples.length, (bar + 1) * width); i++) peak = Math.max(peak, Math.abs(samples[i]));
    return peak;
  });
  const loudest = Math.max(...peaks) || 1;
  return peaks.map((peak) => peak / loudest);
}
