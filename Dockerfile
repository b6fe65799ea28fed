# The studio in a container, on the processor or on an NVIDIA GPU.
#
#   docker build --target cpu --tag nextscale .
#   docker run --rm -p 127.0.0.1:7860:7860 -v "$PWD/runs:/runs" nextscale
#
#   docker build --target cuda --tag nextscale:cuda .
#   docker run --rm --gpus all -p 127.0.0.1:7860:7860 -v "$PWD/runs:/runs" nextscale:cuda
#
# Then open http://localhost:7860. It shows the model in runs/demo; behind the name of the image, `--model /runs/mine`
# shows another. Other commands: docker run --rm -v "$PWD/runs:/runs" --entrypoint nextscale nextscale demo --out /runs/demo

FROM python:3.12-slim AS base
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_CONSTRAINT=/source/constraints.txt
RUN useradd --create-home nextscale && mkdir /runs && chown nextscale /runs
COPY constraints.txt /source/
EXPOSE 7860
ENTRYPOINT ["nextscale", "web", "--host", "0.0.0.0", "--port", "7860", "--runs", "/runs"]
CMD ["--model", "/runs/demo"]

FROM base AS cpu
# The build of torch without CUDA satisfies the same pin and is a tenth as large.
RUN pip install --index-url https://download.pytorch.org/whl/cpu torch
COPY . /source
RUN pip install "/source[web,text]"
USER nextscale
WORKDIR /home/nextscale

FROM base AS cuda
# torch's wheels bring the CUDA libraries; the host brings the driver and the NVIDIA container toolkit.
RUN pip install torch
COPY . /source
RUN pip install "/source[web,text]"
USER nextscale
WORKDIR /home/nextscale
