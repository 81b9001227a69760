# taskres in a container:
#
#   docker build -t taskres-cache .
#   docker run --rm -v "$PWD:/here" --user "$(id -u):$(id -g)" taskres-cache extract photos
#
# Pip's default build of torch includes CUDA, about 5 GB, and uses a GPU if the container has one (docker run --gpus all). For
# a smaller image without CUDA, pass the pip options that https://pytorch.org/get-started/locally shows for the CPU build:
#
#   docker build -t taskres-cache --build-arg TORCH_OPTIONS="..." .
FROM python:3.11-slim AS commands

ARG TORCH_OPTIONS=""
# Extras such as [onnx,plot]
ARG EXTRAS=""

WORKDIR /source
# First, so that a change of the code does not install torch again
RUN pip install --no-cache-dir torch torchvision ${TORCH_OPTIONS}
COPY . .
RUN pip install --no-cache-dir ".${EXTRAS}"

# Downloaded checkpoints; mount a volume here to keep them
ENV HF_HOME=/models
RUN useradd --create-home taskres && mkdir /models /here && chown taskres /models /here && chmod 1777 /models /here
USER taskres
WORKDIR /here

ENTRYPOINT ["taskres"]
CMD ["--help"]

# A service, in an image of its own:
#
#   docker build -t taskres-serve --target service .
#   docker run --rm -p 127.0.0.1:8000:8000 -v "$PWD/runs:/here/runs:ro" taskres-serve runs/RN50-openai/photos --best
FROM commands AS service
USER root
RUN pip install --no-cache-dir "/source[serve]"
USER taskres
EXPOSE 8000
HEALTHCHECK --start-period=120s CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/healthz', timeout=5)"]
ENTRYPOINT ["taskres", "serve", "--host", "0.0.0.0"]
CMD ["--help"]

# Last, so that a build without --target gives the commands
FROM commands
