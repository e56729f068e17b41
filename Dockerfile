# dlnn-search as an image: docker build --build-arg VARIANT=cpu .   (or VARIANT=gpu)
#
# The first stage installs into a folder of its own, the second one keeps that folder and nothing
# else: no compiler, no package cache, no installer. No step needs or sees a secret.

ARG PYTHON_IMAGE=python:3.13-slim-trixie

FROM ${PYTHON_IMAGE} AS build
# cpu: TensorFlow without CUDA's code. gpu: with it, and NVIDIA's libraries beside it.
ARG VARIANT=cpu
ENV PIP_NO_CACHE_DIR=1 UV_NO_CACHE=1 UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never
RUN python3 -m venv /opt/installer && /opt/installer/bin/pip install --quiet 'uv>=0.9'
RUN python3 -m venv --without-pip /opt/dlnn-search
WORKDIR /build
# The libraries first: a change of the program does not install them again.
COPY pyproject.toml ./
RUN case "$VARIANT" in \
      cpu) echo 'tensorflow; sys_platform == "never"' > overrides.txt; \
           tensorflow='tensorflow-cpu>=2.21' ;; \
      gpu) : > overrides.txt; tensorflow='tensorflow[and-cuda]>=2.21' ;; \
      *) echo "Expected VARIANT=cpu or gpu, got '$VARIANT'." >&2; exit 2 ;; \
    esac \
 && /opt/installer/bin/uv pip install --quiet --python /opt/dlnn-search/bin/python \
      --requirements pyproject.toml --extra postgres --overrides overrides.txt "$tensorflow"
# What is for building against TensorFlow, and for testing it: a quarter of its size.
RUN cd /opt/dlnn-search/lib/python3*/site-packages \
 && rm -rf tensorflow/include \
 && find . -type d -name tests -not -path './tensorflow/*' -prune -exec rm -rf {} +
COPY README.md LICENSE ./
COPY studies ./studies
COPY docs ./docs
COPY dlnn_search ./dlnn_search
RUN /opt/installer/bin/uv pip install --quiet --python /opt/dlnn-search/bin/python --no-deps . \
 && rm -f /opt/dlnn-search/.lock

FROM ${PYTHON_IMAGE}
ARG VARIANT=cpu
LABEL org.opencontainers.image.title="dlnn-search" \
      org.opencontainers.image.description="Hyperparameter search for Keras models" \
      org.opencontainers.image.licenses="MIT"
# A number without a name elsewhere: it owns nothing on the host. The folders are for volumes,
# which take over their owner.
RUN groupadd --gid 10001 dlnn \
 && useradd --uid 10001 --gid dlnn --home-dir /home/dlnn --create-home --shell /usr/sbin/nologin dlnn \
 && install -d -o dlnn -g dlnn /files /cache /search
COPY --from=build /opt/dlnn-search /opt/dlnn-search
ENV PATH=/opt/dlnn-search/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    DLNN_SEARCH_FILES=/files \
    DLNN_SEARCH_CACHE=/cache
USER 10001:10001
WORKDIR /search
STOPSIGNAL SIGTERM
ENTRYPOINT ["dlnn-search"]
CMD ["--help"]
