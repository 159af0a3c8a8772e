# The base where a registry can be reached: Debian by digest, plus the packages of the kind.
ARG DEBIAN
FROM ${DEBIAN}
ARG BUILD
LABEL autoresearch.build=${BUILD}
ARG PACKAGES
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends ${PACKAGES} \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt /var/log/apt \
    && find / -xdev -type f -perm /6000 -exec chmod a-s {} +
