# nnaudit with torch: docker build -t nnaudit . && docker run --rm -v "$PWD:/work" nnaudit train.py
# The builds of torch for the CPU alone are smaller by gigabytes. PyTorch keeps them on an index of its
# own: --build-arg PIP_EXTRA_INDEX_URL=(its address, as pytorch.org gives it).
# Your program's own packages: a Dockerfile that begins with FROM nnaudit and installs them.
FROM python:3.12-slim

COPY . /usr/src/nnaudit
ARG PIP_EXTRA_INDEX_URL
RUN pip install --no-cache-dir "torch>=2.8" "/usr/src/nnaudit[pytest]" \
    && rm -rf /usr/src/nnaudit

WORKDIR /work
ENTRYPOINT ["nnaudit"]
