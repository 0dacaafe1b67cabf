# One image for every app:
#
#     docker build -t runner .
#     docker run --rm -p 8000:8000 -v "$PWD:/app" runner app:MyApp       (--gpus all for a GPU)
#
# or copied in: `FROM runner`, `COPY app.py .`, `CMD ["app:MyApp"]`. Everything after the image's
# name goes to the runner. Change the port with -e RUNNER_PORT, so that the health check follows.
#
# What an app imports beside the runner goes into PACKAGES, at the versions of constraints.txt: pydantic
# unless told otherwise. torch alone is some gigabytes, so it comes only when asked for:
#
#     docker build -t runner-torch --build-arg PACKAGES="pydantic torch" .
#
# pip settings for the build alone, in no layer: `--secret id=pip,src=pip.conf`.

ARG BASE=python:3.12-slim-bookworm

FROM ${BASE} AS venv
RUN useradd --uid 1000 --create-home runner \
    && install -d -o runner -g runner /app \
    && python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH


# Our source made ready to be laid over the venv, and the list of what it depends on. Handed over
# with COPY: a bind mount from a stage is not part of the cache key of every builder (buildah 1.28).
FROM venv AS source
WORKDIR /src
COPY pyproject.toml constraints.txt ./
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['build-system']['requires'], sep='\n')" >build.txt \
    && python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" >requirements.txt
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    --mount=type=cache,target=/root/.cache/pip \
    pip install -r build.txt -c constraints.txt
COPY . .
RUN pip install --no-index --no-deps --no-build-isolation --ignore-installed --prefix /out .


FROM venv
# Changes seldom, so it stands before our source: an edit to runner.py reuses this layer.
COPY --from=source /src/requirements.txt /src/constraints.txt /opt/venv/
ARG PACKAGES="pydantic"
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    --mount=type=cache,target=/root/.cache/pip \
    pip install -r /opt/venv/requirements.txt ${PACKAGES} -c /opt/venv/constraints.txt
COPY --from=source /out /opt/venv

ENV PYTHONUNBUFFERED=1 \
    RUNNER_HOST=0.0.0.0 \
    RUNNER_PORT=8000
USER runner
WORKDIR /app
EXPOSE 8000
# Ready, not merely alive. A model may load for minutes: failures count after start-period only.
HEALTHCHECK --interval=10s --timeout=5s --start-period=15m \
    CMD ["python", "-c", "import os, urllib.request as r; r.build_opener(r.ProxyHandler({})).open('http://127.0.0.1:' + os.environ['RUNNER_PORT'] + '/health/ready', timeout=4)"]
ENTRYPOINT ["runner", "--supervise"]
CMD []
