# solepod's image: make image puts the static binaries where this finds them.
#
# Nothing but the binary. CA certificates are not needed: the one server that
# solepod speaks to is the API server, whose CA comes with the ServiceAccount.
FROM scratch
ARG TARGETOS TARGETARCH
# The mode does not depend on the umask of whoever builds.
COPY --chmod=0755 bin/solepod-${TARGETOS}-${TARGETARCH} /solepod
ARG VERSION REVISION
LABEL org.opencontainers.image.title="solepod" \
      org.opencontainers.image.description="Keeps the task pods of several Airflow deployments in one cluster apart" \
      org.opencontainers.image.source="https://github.com/solepod/solepod" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# A number, because runAsNonRoot cannot tell of a name who it is.
USER 65532:65532
ENTRYPOINT ["/solepod"]
