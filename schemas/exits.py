"""The exit codes of the process. An operator's supervisor may tell by them what happened."""

from __future__ import annotations

STOPPED = 0  # as asked, by SIGTERM or SIGINT
SETUP_FAILED = 1  # `setup()` raised or took longer than `startup_timeout`; also an app that cannot be imported
WRONG_SETTING = 2  # a flag, a setting, a plugin or the app's class is wrong; the next start would fail alike
UNHEALTHY = 70  # the app failed its health check; only under --supervise, else probes decide
STUCK = 71  # cancelled work did not leave its thread within 30 s
MODEL_CHANGED = 72  # a cancelled run left the model's weights, mode or hooks other than they were
RELOADED = 73  # the app's code changed; only under --reload
GPU_LOST = 74  # an error after which nothing more can be done on the GPU in this process
OUT_OF_MEMORY = 75  # not even a little memory can be had, with nobody else at work
ASKED = 76  # an answer of the app had `x-fal-stop-runner: true`
