package corpus_test

// features are patterns of all that the language and its frontend have to offer:
// instructions, flags, directives, arguments and options, as the reference of
// docker/dockerfile 1.28 lists them.
func features() []string {
	return []string{
		`^FROM --platform=`, `^FROM \S+ AS \S+`, `^FROM scratch`, `^ARG .*\nFROM \$`,
		`^RUN --mount=type=bind`, `^RUN --mount=type=cache,id=`, `^RUN --mount=type=tmpfs`, `^RUN --mount=type=secret`, `^RUN --mount=type=ssh`,
		`sharing=locked`, `sharing=private`, `,required`, `,env=`, `,mode=\d+,uid=\d,gid=\d`, `,size=`, `,rw\b`, `,ro\b`, `,readwrite=true`,
		`^RUN --network=none`, `^RUN --network=host`, `--network=default`, `^RUN --security=insecure`, `--security=sandbox`, `^RUN --device=`,
		`^RUN \[`, `^RUN <<`, `^#!/bin/sh`,
		`^COPY --from=`, `^COPY --chown=`, `^COPY --chmod=0`, `^COPY --chmod=u`, `^COPY --chmod=\$`, `^COPY --link`, `^COPY --parents`, `^COPY --exclude=`, `^COPY \[`, `^COPY <<`,
		`^ADD @HTTP@`, `^ADD @GIT@`, `^ADD --checksum=sha256`, `^ADD --checksum=@FIRST@`, `^ADD --keep-git-dir=true`, `^ADD --unpack=true`, `^ADD --unpack=false`,
		`^ADD --chown=`, `^ADD --chmod=`, `^ADD --link`, `^ADD --exclude=`, `^ADD <<`, `\.tar\.gz`, `\.tar\.bz2`, `\.tar\.xz`, `\.tar\.zst`,
		`^ENV \S+=`, `^ENV \S+ \S`, `^LABEL`, `^EXPOSE .*/udp`, `^EXPOSE .*\d-\d`, `^VOLUME \[`, `^VOLUME /`, `^USER`, `^WORKDIR`, `^STOPSIGNAL`, `^SHELL \[`,
		`^CMD \[`, `^CMD [^[]`, `^ENTRYPOINT \[`, `^ENTRYPOINT [^[]`, `^MAINTAINER`,
		`^HEALTHCHECK --interval=`, `--timeout=`, `--start-period=`, `--start-interval=`, `--retries=`, `^HEALTHCHECK NONE`,
		`^ARG \S+ \S+`, `^ONBUILD RUN`, `^ONBUILD COPY`, `^ONBUILD COPY --from=`,
		`^# syntax=`, `^# escape=`, `^# check=`, `<<-`, `<<"`, `<<'`,
		`\$\{\w+:-`, `\$\{\w+-`, `\$\{\w+:\+`, `\$\{\w+\+`, `\$\{\w+:\?`, `\$\{\w+\?`, `\$\{\w+#[^#]`, `\$\{\w+##`, `\$\{\w+%[^%]`, `\$\{\w+%%`, `\$\{\w+/[^/]`, `\$\{\w+//`,
		`BUILDPLATFORM`, `TARGETPLATFORM`, `TARGETOS`, `TARGETARCH`, `TARGETVARIANT`, `TARGETSTAGE`, `BUILDOS`, `BUILDARCH`,
		`BUILDKIT_CACHE_MOUNT_NS`, `BUILDKIT_CONTEXT_KEEP_GIT_DIR`, `BUILDKIT_SANDBOX_HOSTNAME`, `BUILDKIT_MULTI_PLATFORM`, `BUILDKIT_DOCKERFILE_CHECK`, `HTTP_PROXY`, `SOURCE_DATE_EPOCH`,
		`^target=`, `^platform=\S+,`, `^no-cache=<empty>`, `^no-cache=\w`, `^build-arg:`, `^label:`, `^filename=`, `^add-hosts=`, `^hostname=`, `^shm-size=`, `^ulimit=`, `^force-network-mode=`, `^image-resolve-mode=`, `^cgroup-parent=`,
		`^context=@HTTP@`, `^context=@GIT@`, `^context:\S+=docker-image://`, `^context:\S+=oci-layout://`, `^context:\S+=@GIT@`, `^context:\S+=@HTTP@`, `^context:\S+=local:`, `^context:\S+=input:`,
		`^context=@SSH@`, `^context=@SCP@`, `^ADD @SSH@`, `^ADD @SCP@`, `^context=@GIT@/sha256`, `^ADD .*@GIT@/sha256`, `^context:\S+=@SCP@`,
		`^context=@GIT@\S+#v1:folder`, `^context=@GIT@\S+#@FIRST@`, `^context=@GIT@\S+\?ref=v1&commit=`, `^context=@GIT@\S+\?tag=v1&checksum=`, `fetch-by-commit`,
		`^context=@HTTP@/context\.tar$`, `^context=@HTTP@/context\.tar\.gz`, `^context=@HTTP@/context\.tar\.bz2`, `^context=@HTTP@/context\.tar\.xz`, `^context=@HTTP@/context\.tar\.zst`, `^context=@HTTP@/Dockerfile`,
		`^stdin=packed/c\.tar$`, `^stdin=packed/c\.tar\.zst`, `^stdin=packed/plain`, `^elsewhere:context=`, `^elsewhere:dockerfile=`,
		`^build-arg:SOURCE_DATE_EPOCH=\d`, `^build-arg:SOURCE_DATE_EPOCH=context`, `^ARG SOURCE_DATE_EPOCH=\d`, `^ARG SOURCE_DATE_EPOCH=when`, `^build-arg:SOURCE_DATE_EPOCH=src`,
		`^image-resolve-mode=pull`, `^image-resolve-mode=local`, `^force-network-mode=none`, `^force-network-mode=host`, `^force-network-mode=sandbox`, `^cmdline=`,
		`^attest:provenance=mode=min`, `^attest:provenance=mode=max`, `version=v0\.2`, `builder-id=`, `^attest:sbom=generator=`, `BUILDKIT_SBOM_SCAN_CONTEXT`, `BUILDKIT_SBOM_SCAN_STAGE`,
		`^-- \.dockerignore --`, `^-- \S+\.Dockerfile\.dockerignore --`, `\\r$`,
	}
}
