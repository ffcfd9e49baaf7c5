#!/bin/sh
# Passwords and certificates of the services in compose.yaml, in deploy/secrets/. What is there
# already stays as it is, so that it can be run again. It needs OpenSSL 3 and nothing else.
#   sh deploy/secrets.sh [HOST…]          all of them; nodes elsewhere reach the broker by those names
#   sh deploy/secrets.sh --node PEERID    an account at the broker for one node
# Then, for a broker that runs:  docker compose kill --signal HUP mosquitto
set -eu
# Others of this machine are kept out by the folder: services, which run as users of their own, read
# the files themselves. The authority's key is for no service.
umask 022
folder=${NOVAMESH_SECRETS:-$(dirname "$0")/secrets}
mkdir -p "$folder"
chmod 0700 "$folder"
cd "$folder"

fail() {
  echo "error: $1" >&2
  exit 1
}

# password FILE: a new one, whole or not at all
password() {
  [ -e "$1" ] && return
  openssl rand -hex 24 > "$1.new"
  mv "$1.new" "$1"
  echo "made $folder/$1"
}

# account USER FILE: what Mosquitto keeps of a password: PBKDF2-SHA512, with a salt of 12 bytes
account() {
  grep -q "^$1:" mqtt_accounts 2> /dev/null && return
  salt=$(openssl rand -base64 9)
  key=$(openssl kdf -binary -keylen 64 -kdfopt digest:SHA512 -kdfopt "pass:$(cat "$2")" \
    -kdfopt "salt:$salt" -kdfopt iter:101 PBKDF2 | openssl base64 -A)
  [ -n "$key" ] || fail "this openssl knows no kdf: OpenSSL 3 is needed"
  # Appended in place: the broker has this very file mounted.
  echo "$1:\$7\$101\$$(printf %s "$salt" | openssl base64 -A)\$$key" >> mqtt_accounts
}

# certificates NAME…: an authority of the pool's own, and the broker's certificate for those names
certificates() {
  [ -e mqtt.crt ] && return
  names="DNS:mosquitto"
  for name in "$@"; do names="$names,DNS:$name"; done
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 \
    -subj "/CN=novamesh broker authority" -keyout authority.key -out mqtt_ca.crt 2> /dev/null
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=mosquitto" \
    -keyout mqtt.key -out mqtt.csr 2> /dev/null
  echo "subjectAltName=$names" > mqtt.ext
  openssl x509 -req -in mqtt.csr -CA mqtt_ca.crt -CAkey authority.key -CAcreateserial -days 825 \
    -extfile mqtt.ext -out mqtt.crt.new 2> /dev/null
  rm -f mqtt.csr mqtt.ext
  chmod 0644 mqtt.key
  mv mqtt.crt.new mqtt.crt
  echo "made $folder/mqtt.crt for $names"
}

if [ "${1:-}" = "--node" ]; then
  node=${2:?the PeerId of a node: novamesh key show --node}
  case $node in *[!A-Za-z0-9]*) fail "$node is no PeerId" ;; esac
  password "node_$node"
  account "$node" "node_$node"
  exit
fi
for secret in mqtt_password postgres_password grafana_password; do password "$secret"; done
account coordinator mqtt_password
certificates "$@"
