# One image for all of Millrace's services: docker run millrace api, worker, query, migrate up, …
# docker build --build-arg VERSION=$(git describe --tags --always) -t millrace .

FROM --platform=$BUILDPLATFORM golang:1.26.10 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=dev
ARG TARGETOS=linux
ARG TARGETARCH
# The compiler keeps what it has compiled for the next build.
RUN --mount=type=cache,target=/root/.cache/go-build CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH go build -trimpath -ldflags "-s -w -X main.version=$VERSION" -o millrace . && mkdir archive

FROM scratch
ARG VERSION=dev
LABEL org.opencontainers.image.title="Millrace" \
      org.opencontainers.image.description="JSON logs over HTTP into PostgreSQL, exactly once" \
      org.opencontainers.image.version="$VERSION"
# For TLS to servers whose certificates public authorities have signed.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /src/millrace /usr/bin/millrace
# A volume that is new takes its owner from here.
COPY --from=build --chown=65532:65532 /src/archive /var/lib/millrace/archive
# Nobody's number. A container has no other user, and nothing in it is for writing.
USER 65532:65532
# Where keys and certificates are mounted; .env is read here.
WORKDIR /etc/millrace
# All addresses of the container; what is published is up to who runs it.
ENV API_ADDR=0.0.0.0:8080 QUERY_ADDR=0.0.0.0:8081 WORKER_ADDR=0.0.0.0:8082
EXPOSE 8080 8081 8082
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --start-interval=1s CMD ["/usr/bin/millrace", "health"]
ENTRYPOINT ["/usr/bin/millrace"]
CMD ["help"]
