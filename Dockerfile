# nnaudit with torch for the CPU: docker build -t nnaudit . && docker run --rm -v "$PWD:/work" nnaudit train.py
# Your program's own packages: a Dockerfile that begins with FROM nnaudit and installs them.
FROM python:3.12-slim

COPY . /usr/src/nnaudit
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu \
        "torch>=2.8" "/usr/src/nnaudit[pytest]" \
    && rm -rf /usr/src/nnaudit

WORKDIR /work
ENTRYPOINT ["nnaudit"]
