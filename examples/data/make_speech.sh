#!/bin/sh
# Make speech.wav and speech.json: three espeak-ng phrases with silence around them.
# Needs espeak-ng, sox and Python. 16 kHz, mono, 16 bit.
set -eu
cd "$(dirname "$0")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

say() { # say NAME WORDS: the phrase at 16 kHz, the silence that espeak-ng leaves around it cut off
    espeak-ng -v en-us -s 150 -w "$work/$1-raw.wav" "$2"
    sox "$work/$1-raw.wav" -r 16000 -b 16 -D "$work/$1.wav" gain -n -3 \
        silence 1 0.01 0.5% reverse silence 1 0.01 0.5% reverse
}
silence() { sox -D -n -r 16000 -b 16 "$work/$1.wav" trim 0 "$2"; }

say one "The quick brown fox jumps over the lazy dog."
say two "Nobody spoke a word for quite a while."
say three "Then all of them began to sing."
silence before 1.0
silence pause1 1.2
silence pause2 0.9
silence after 0.8
sox -D "$work/before.wav" "$work/one.wav" "$work/pause1.wav" "$work/two.wav" \
    "$work/pause2.wav" "$work/three.wav" "$work/after.wav" speech.wav

# When each phrase can be heard: its first and last 10 ms louder than -45 dB of full scale.
python3 - <<'PYTHON'
import array, json, wave

with wave.open("speech.wav") as sound:
    rate, samples = sound.getframerate(), array.array("h", sound.readframes(sound.getnframes()))
step, pause = rate // 100, 0.5
loud = [
    i / rate
    for i in range(0, len(samples), step)
    if (sum(s * s for s in samples[i : i + step]) / step) ** 0.5 > 32768 * 10 ** (-45 / 20)
]
segments = []
for time in loud:
    if not segments or time - segments[-1]["end"] > pause:
        segments.append({"start": round(time, 3), "end": 0.0})
    segments[-1]["end"] = round(time + step / rate, 3)
with open("speech.json", "w") as file:
    json.dump({"duration": len(samples) / rate, "segments": segments}, file, indent=1)
    file.write("\n")
PYTHON
