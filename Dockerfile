# nnaudit with torch: docker build -t nnaudit . && docker run --rm -v "$PWD:/work" nnaudit train.py
# Torch as PyPI has it brings CUDA. The builds for the CPU alone are smaller by gigabytes; PyTorch keeps
# them on an index of its own: --build-arg PIP_EXTRA_INDEX_URL=(its address, as pytorch.org gives it).
# Your program's own packages: a Dockerfile that begins with FROM nnaudit and installs them.
FROM python:3.12-slim

COPY . /usr/src/nnaudit
# Pip reads what an argument of its name says; where nothing is given, PyPI alone is asked.
ARG PIP_EXTRA_INDEX_URL
RUN pip install --no-cache-dir "torch>=2.8" "/usr/src/nnaudit[pytest,fix,notebook]"

# Whoever runs it (docker run --user) needs a home that can be written.
ENV HOME=/tmp
WORKDIR /work
ENTRYPOINT ["nnaudit"]
