# The image of solepod. make image builds the static binaries first.
#
# It contains only the binary. solepod connects to the API server only, whose CA
# certificate is mounted with the ServiceAccount.
FROM scratch
ARG TARGETOS TARGETARCH
# The mode must not depend on the umask of the build.
COPY --chmod=0755 bin/solepod-${TARGETOS}-${TARGETARCH} /solepod
ARG VERSION REVISION
LABEL org.opencontainers.image.title="solepod" \
      org.opencontainers.image.description="Keeps the task pods of several Airflow deployments in one cluster apart" \
      org.opencontainers.image.source="https://github.com/solepod/solepod" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# A number: runAsNonRoot cannot verify a name.
USER 65532:65532
ENTRYPOINT ["/solepod"]
