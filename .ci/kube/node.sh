#!/usr/bin/env bash
# node.sh STATE PROGRAMS: the processes of a cluster of one node, in namespaces that .ci/kube.sh has made. It ends when one of
# them ends, and they all end with it. STATE/ready is there once pods can run.
set -euo pipefail
state=$1 programs=$2
node=10.199.0.1
exec 9>>"$state/lock"
flock --timeout 5 9
cd "$state"
mkdir logs etcd kubelet containerd cni pki var helm
mkdir -p var/log var/lib/otelcol

# Groups of its own, which get as much of a busy machine's processor time as four processes outside.
for controller in /sys/fs/cgroup/*/; do
	[ ! -e "$controller/cgroup.procs" ] || mkdir -p "$controller/millrace-kube" 2>/dev/null || true
done
[ ! -e /sys/fs/cgroup/cgroup.procs ] || mkdir -p /sys/fs/cgroup/millrace-kube
echo 4096 >/sys/fs/cgroup/cpu/millrace-kube/cpu.shares 2>/dev/null || echo 400 >/sys/fs/cgroup/millrace-kube/cpu.weight 2>/dev/null || true
for file in cpuset.cpus cpuset.mems; do
	cat "/sys/fs/cgroup/cpuset/$file" >"/sys/fs/cgroup/cpuset/millrace-kube/$file" 2>/dev/null || true
done

mount -t tmpfs tmpfs /run
mount --bind var/log /var/log # the pods' logs
mkdir /run/groups
mount --rbind /sys/fs/cgroup /run/groups
mount -t sysfs sysfs /sys
mount --rbind /run/groups /sys/fs/cgroup
umount --lazy /run/groups

# A device with an address, for the node. The machine has no way in but nsenter, and nothing has a way out.
ip link set lo up
ip link add node0 type veth peer name node1
ip address add "$node/24" dev node0
ip link set node0 up
ip link set node1 up
ip route add default via "$node" dev node0
echo 1 >/proc/sys/net/ipv4/ip_forward

start() { # NAME COMMAND…
	local name=$1
	shift
	"$@" >>"logs/$name.log" 2>&1 </dev/null 9>&- &
}
until_ok() { # WHAT COMMAND…
	local what=$1
	shift
	for _ in $(seq 400); do
		! "$@" >/dev/null 2>&1 || return 0
		sleep 0.2
	done
	echo "$what: not in time" >&2
	exit 1
}

cd pki
openssl ecparam -name prime256v1 -genkey -noout -out ca.key
openssl req -x509 -new -key ca.key -days 30 -subj /CN=ca -out ca.crt
openssl genrsa -out sa.key 2048
openssl rsa -in sa.key -pubout -out sa.pub
certificate() { # NAME SUBJECT EXTENSION
	openssl ecparam -name prime256v1 -genkey -noout -out "$1.key"
	openssl req -new -key "$1.key" -subj "$2" -out "$1.csr"
	openssl x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -extfile <(echo "$3") -out "$1.crt"
}
certificate apiserver /CN=kube-apiserver "subjectAltName=DNS:localhost,DNS:kubernetes.default.svc,IP:127.0.0.1,IP:10.96.0.1,IP:$node"
certificate admin /O=system:masters/CN=admin extendedKeyUsage=clientAuth
cd ..
encoded() { base64 --wrap 0 "pki/$1"; }
cat >kubeconfig <<Y
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://127.0.0.1:6443", certificate-authority-data: $(encoded ca.crt)}}]
users: [{name: u, user: {client-certificate-data: $(encoded admin.crt), client-key-data: $(encoded admin.key)}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
Y
chmod 644 kubeconfig # of a cluster that lives for minutes, in a network that nobody reaches
export KUBECONFIG=$state/kubeconfig

start etcd etcd --data-dir etcd --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
	--listen-peer-urls http://127.0.0.1:2380 --unsafe-no-fsync
cat >containerd.toml <<T
version = 2
root = "$state/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
  address = "$state/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  # Root may lack CAP_SYS_RESOURCE: then an oom_score_adj below one's own is refused, and runc dies of it.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "$programs"
    conf_dir = "$state/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
T
cat >cni/10-bridge.conflist <<J
{"cniVersion": "1.0.0", "name": "pods", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true, "ipam": {"type": "host-local",
   "ranges": [[{"subnet": "10.244.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}], "dataDir": "/run/cni"}}]}
J
start containerd containerd --config containerd.toml
start kube-apiserver kube-apiserver --etcd-servers=http://127.0.0.1:2379 --bind-address=0.0.0.0 --secure-port=6443 --advertise-address="$node" \
	--service-cluster-ip-range=10.96.0.0/16 --client-ca-file=pki/ca.crt --tls-cert-file=pki/apiserver.crt --tls-private-key-file=pki/apiserver.key \
	--service-account-issuer=https://kubernetes.default.svc --service-account-key-file=pki/sa.pub --service-account-signing-key-file=pki/sa.key \
	--kubelet-client-certificate=pki/admin.crt --kubelet-client-key=pki/admin.key --kubelet-preferred-address-types=InternalIP \
	--authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --allow-privileged=true
until_ok containerd ctr --address "$state/containerd.sock" version
# An image of one file, in the form of docker save.
mkdir pause
tar --create --directory "$programs" --file pause/layer.tar --owner 0 --group 0 pause
cat >pause/config.json <<J
{"architecture": "$(dpkg --print-architecture)", "os": "linux", "config": {"Entrypoint": ["/pause"], "User": "65535"}, "rootfs": {"type": "layers", "diff_ids": ["sha256:$(sha256sum pause/layer.tar | cut -d' ' -f1)"]}}
J
echo '[{"Config": "config.json", "RepoTags": ["localhost/pause:1"], "Layers": ["layer.tar"]}]' >pause/manifest.json
tar --create --directory pause . | ctr --address "$state/containerd.sock" --namespace k8s.io images import -
until_ok kube-apiserver kubectl get --raw /readyz
start kube-controller-manager kube-controller-manager --kubeconfig=kubeconfig --service-account-private-key-file=pki/sa.key --root-ca-file=pki/ca.crt \
	--use-service-account-credentials --leader-elect=false --cluster-signing-cert-file=pki/ca.crt --cluster-signing-key-file=pki/ca.key
start kube-scheduler kube-scheduler --kubeconfig=kubeconfig --leader-elect=false
cat >kubelet.yaml <<Y
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: false}, webhook: {enabled: false}, x509: {clientCAFile: $state/pki/ca.crt}}
authorization: {mode: AlwaysAllow}
cgroupDriver: cgroupfs
cgroupRoot: /millrace-kube
failCgroupV1: false
failSwapOn: false
containerRuntimeEndpoint: unix://$state/containerd.sock
clusterDNS: [$node]
clusterDomain: cluster.local
resolvConf: ""
# The machine's disk and memory are others' too: no pod is to go, or be kept away, because they fill up.
evictionHard: {memory.available: 100Mi, nodefs.available: 1%, imagefs.available: 1%, nodefs.inodesFree: 1%}
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
Y
start kubelet kubelet --config=kubelet.yaml --kubeconfig=kubeconfig --root-dir="$state/kubelet" --hostname-override=node --node-ip="$node"
cat >proxy.yaml <<Y
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {kubeconfig: $state/kubeconfig}
mode: iptables
# Pods are on one bridge, so an answer to what came through a Service would not come back the same way.
iptables: {masqueradeAll: true}
hostnameOverride: node
clusterCIDR: 10.244.0.0/16
conntrack: {maxPerCore: 0}
Y
start kube-proxy kube-proxy --config=proxy.yaml
cat >Corefile <<C
.:53 {
	bind $node
	errors
	kubernetes cluster.local in-addr.arpa {
		kubeconfig $state/kubeconfig x
		ttl 1
	}
}
C
start coredns dns -conf Corefile
until_ok node kubectl wait --for=condition=Ready node/node --timeout=1s
until_ok "the account of pods" kubectl get serviceaccount default
touch ready
wait -n
echo "a process of the cluster has ended" >&2
exit 1
