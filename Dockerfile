# taskres in a container:
#
#   docker build -t taskres-cache .
#   docker run --rm -v "$PWD:/work" --user "$(id -u):$(id -g)" taskres-cache extract photos
#
# Pip's default build of torch includes CUDA, about 5 GB, and uses a GPU if the container has one (docker run --gpus all). For
# a smaller image without CUDA, pass the pip options that https://pytorch.org/get-started/locally shows for the CPU build:
#
#   docker build -t taskres-cache --build-arg TORCH_OPTIONS="..." .
FROM python:3.11-slim

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
RUN useradd --create-home taskres && mkdir /models /work && chown taskres /models /work && chmod 1777 /models /work
USER taskres
WORKDIR /work

ENTRYPOINT ["taskres"]
CMD ["--help"]
