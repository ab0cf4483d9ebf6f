#!/usr/bin/env bash
# deploy/kube.sh LOAD…: the chart on a cluster, from nothing: install into a namespace that enforces the Pod Security Standard
# restricted, helm test, and then under load from inside the cluster, counted: scale, rolling updates, pods evicted and killed,
# servers killed, an upgrade with a migration and the way back. Then client certificates, RabbitMQ away, removal. kubectl and
# helm reach the cluster. The images are millrace:dev, millrace:next, which has a migration more, and millrace-client:dev;
# LOAD… IMAGE… brings them to the nodes. .ci/kube.sh test runs it.
#
#   KILLS=n       each pod is killed n times under load (2)
#   NEXT=no       without the upgrade to millrace:next and the way back
#   DELAY=20s     SHUTDOWN_DELAY, where kube-proxy may take longer than the chart's 5 s to hear that a pod ends: on a busy machine
#   RATE=n        records that the clients send in a second (1000)
set -Eeuo pipefail
trap 'echo "kube: line $LINENO: $BASH_COMMAND" >&2' ERR
cd "$(dirname "$0")/.."

kills=${KILLS:-2}
ns=millrace-test helpers=millrace-test-helpers
work=$(mktemp -d)
# shellcheck source=deploy/steps.sh
. deploy/steps.sh
k() { kubectl --namespace $ns "$@"; }
forwards=()
remove() {
	status=$?
	trap - EXIT
	if [ $status != 0 ]; then
		kubectl get pods,events --namespace $ns || true
		for pod in $(k get pods --output name); do
			echo "--- $pod"
			k logs --all-containers --tail 15 "$pod" || true
			k logs --all-containers --tail 15 --previous "$pod" 2>/dev/null || true
		done
	fi 2>&1 | tail -n 400
	[ ${#forwards[@]} = 0 ] || kill "${forwards[@]}" 2>/dev/null || true
	helm --namespace $ns uninstall millrace --wait --timeout 2m >/dev/null 2>&1 || true
	kubectl delete namespace $ns $helpers --ignore-not-found --timeout 2m >/dev/null || status=1
	kubectl delete clusterrole,clusterrolebinding $helpers --ignore-not-found >/dev/null || status=1
	rm -rf "$work"
	exit $status
}
trap remove EXIT

chart() { # COMMAND ARGUMENT…: helm install or upgrade, until all runs
	local command=$1
	shift
	helm --namespace $ns "$command" millrace deploy/helm/millrace --wait --timeout 5m "$@" >"$work/helm.log" || {
		tail -n 20 "$work/helm.log"
		return 1
	}
}
pods() { k get pods --selector "app.kubernetes.io/instance=millrace,app.kubernetes.io/component=$1" --field-selector status.phase=Running --output 'go-template={{range .items}}{{if not .metadata.deletionTimestamp}}{{.metadata.name}}{{"\n"}}{{end}}{{end}}'; }
settled() { # all pods of the services run, and no other
	local name
	for name in api worker query; do
		k rollout status "deployment/millrace-$name" --timeout 4m >/dev/null
	done
}
sql() { k exec millrace-demo-postgres-0 -- psql -U millrace -d millrace -qAtc "$1"; }

step "what the namespace must not take is refused"
kubectl create namespace $ns --dry-run=client --output yaml | kubectl apply --filename - >/dev/null
kubectl label namespace $ns --overwrite pod-security.kubernetes.io/enforce=restricted >/dev/null
if said=$(k run root --image millrace:dev 2>&1); then
	echo "kube: the namespace takes any pod: $said" >&2
	exit 1
fi
grep -F 'violates PodSecurity "restricted' <<<"$said" >/dev/null

step install
began=$SECONDS
"$@" millrace:dev millrace:next millrace-client:dev
k wait --for=create serviceaccount/default --timeout 1m >/dev/null
chart install --values deploy/helm/millrace/values-demo.yaml ${DELAY:+--set "settings.SHUTDOWN_DELAY=$DELAY"}
echo "installed and ready after $((SECONDS - began)) s"
step "helm test"
for _ in 1 2; do # the second one replaces the pod of the first
	helm --namespace $ns test millrace --logs --timeout 2m | grep -F '"message":"helm test of millrace"'
done

step "the pods' logs, by a Collector on each node"
kubectl create namespace $helpers >/dev/null
kubectl --namespace $helpers create secret generic millrace --from-literal=key=none >/dev/null
sed -e "s/namespace: logging/namespace: $helpers/; s/logging_collector-/${helpers}_collector-/; s/millrace-api\.logs\.svc/millrace-api.$ns.svc/; s/name: millrace-collector/name: $helpers/" \
	deploy/helm/examples/collector.yaml | kubectl apply --filename - >/dev/null
collects() { kubectl --namespace $helpers rollout status daemonset/collector --timeout 2m >/dev/null; }
collects
talk() { # NAME: a pod that writes 500 lines of JSON, and two that are none
	k apply --filename - >/dev/null <<-Y
		apiVersion: v1
		kind: Pod
		metadata: {name: $1, labels: {app.kubernetes.io/name: talk}}
		spec:
		  automountServiceAccountToken: false
		  restartPolicy: Never
		  securityContext: {runAsNonRoot: true, runAsUser: 999, seccompProfile: {type: RuntimeDefault}}
		  containers:
		    - name: mouth
		      image: $postgres
		      command: [bash, -c, 'for i in {1..500}; do echo "{\"level\":\"warn\",\"n\":\$i,\"message\":\"talk\"}"; done; echo two words; echo "{two words"']
		      securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
	Y
}
heard() { # NAME: prints how many rows its lines have become: JSON, others, and numbers that differ
	sql "SELECT count(*) FILTER (WHERE data->>'level' = 'warn' AND data->>'message' = 'talk'), count(*) FILTER (WHERE data->>'message' IN ('two words', '{two words')), count(DISTINCT data->>'n')
		FROM logs WHERE data @> '{\"k8s\": {\"namespace\": {\"name\": \"$ns\"}, \"pod\": {\"name\": \"$1\"}, \"container\": {\"name\": \"mouth\"}}, \"service\": {\"name\": \"talk\"}}'"
}
all_heard() { [ "$(heard "$1")" = '500|2|500' ]; }
postgres=$(k get statefulset millrace-demo-postgres --output 'jsonpath={.spec.template.spec.containers[0].image}')
talk one
eventually all_heard one
kubectl --namespace $helpers delete pod --selector app=collector >/dev/null
talk two
collects
eventually all_heard two
heard one # as before: the place in its file was kept
all_heard one
kubectl --namespace $helpers delete daemonset/collector >/dev/null
k delete pod one two >/dev/null

step "clients begin"
cat >"$work/client.yaml" <<Y
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: $ns}
spec:
  automountServiceAccountToken: false
  restartPolicy: Never
  securityContext: {runAsNonRoot: true, runAsUser: 65532, seccompProfile: {type: RuntimeDefault}}
  containers:
    - name: client
      image: millrace-client:dev
      args: [-apis, "millrace-api:8080", -query, "millrace-query:8081", -rate, "${RATE:-1000}"]
      env: [{name: POSTGRES_URL, valueFrom: {secretKeyRef: {name: millrace-demo, key: postgres}}}]
      securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
Y
phase() { k exec client -- /client phase "$@"; } # [-clean] NAME of the next one
begin() {
	k apply --filename "$work/client.yaml" >/dev/null
	k wait --for=condition=Ready pod/client --timeout 1m >/dev/null
}
end() {
	k exec client -- /client end
	ended() { [[ $(k get pod client --output 'jsonpath={.status.phase}') =~ Succeeded|Failed ]]; }
	eventually ended
	k logs client | tail -n 12
	[ "$(k get pod client --output 'jsonpath={.status.phase}')" = Succeeded ]
	k delete pod client >/dev/null
}
begin
sleep 5

step "scaled from 1 to 3"
phase -clean "scaled from 1 to 3"
upgrade() { chart upgrade --reuse-values "$@"; }
upgrade --set api.replicas=3,worker.replicas=3,query.replicas=3
settled
for name in api worker query; do
	[ "$(pods $name | wc -l)" = 3 ]
done

for name in api worker query; do
	step "a rolling update of $name"
	phase -clean "rolling update of $name"
	began=$SECONDS
	upgrade --set "$name.podAnnotations.round=one"
	echo "$((SECONDS - began)) s"
done

step "a worker's pod evicted from a node that takes no other; the budget keeps the next"
phase -clean evicted
evict() { # POD: prints the answer
	kubectl create --raw "/api/v1/namespaces/$ns/pods/$1/eviction" --filename - <<<"{\"apiVersion\":\"policy/v1\",\"kind\":\"Eviction\",\"metadata\":{\"name\":\"$1\",\"namespace\":\"$ns\"}}" 2>&1
}
mapfile -t workers < <(pods worker)
kubectl get nodes --output name | xargs --max-args 1 kubectl cordon >/dev/null
evict "${workers[0]}" | grep -F '"status":"Success"' >/dev/null
k wait --for=delete "pod/${workers[0]}" --timeout 2m >/dev/null
said=$(evict "${workers[1]}" || true)
grep -F "disruption budget" <<<"$said"
kubectl get nodes --output name | xargs --max-args 1 kubectl uncordon >/dev/null
settled
evict "${workers[1]}" | grep -F '"status":"Success"' >/dev/null
settled

step "the nodes drained; what comes instead finds its place at once, as on another node"
phase -clean drained
for node in $(kubectl get nodes --output name); do
	kubectl drain "$node" --pod-selector "app.kubernetes.io/instance=millrace,app.kubernetes.io/component in (api,worker,query)" --delete-emptydir-data --timeout 4m >"$work/drain" 2>&1 &
	draining=$!
	cordoned() { [ "$(kubectl get "$node" --output 'jsonpath={.spec.unschedulable}')" = true ]; }
	eventually cordoned
	kubectl uncordon "$node" >/dev/null
	wait $draining || {
		tail -n 5 "$work/drain"
		exit 1
	}
done
grep -c '^pod/.* evicted' "$work/drain"
settled

step "each pod killed $kills times, in turn its process and the pod itself"
phase -clean killed
# What sees the node's processes. Its namespace is its own: no other may have such pods.
kubectl apply --filename - >/dev/null <<Y
apiVersion: v1
kind: Pod
metadata: {name: helper, namespace: $helpers}
spec:
  hostPID: true
  terminationGracePeriodSeconds: 0
  containers: [{name: helper, image: $postgres, command: [sleep, infinity], securityContext: {privileged: true, runAsUser: 0}}]
Y
kubectl wait --namespace $helpers --for=condition=Ready pod/helper --timeout 2m >/dev/null
kill_process() { # POD NAME: SIGKILL for each process NAME of the pod
	local uid
	uid=$(k get pod "$1" --output 'jsonpath={.metadata.uid}')
	# shellcheck disable=SC2016 # expanded within
	kubectl exec --namespace $helpers helper -- bash -euc '
		killed=0
		for process in /proc/[0-9]*; do
			[ "$(cat "$process/comm" 2>/dev/null)" = "$2" ] && tr _ - <"$process/cgroup" 2>/dev/null | grep -q "pod$1" || continue
			kill -KILL "${process#/proc/}"
			killed=1
		done
		[ $killed = 1 ]' kill "$uid" "$2"
}
restarts() { k get pod "$1" --output 'jsonpath={.status.containerStatuses[0].restartCount}'; }
restarted() { [ "$(restarts "$1")" -gt "$2" ]; } # POD BEFORE
for round in $(seq "$kills"); do
	for name in api worker query; do
		for pod in $(pods $name); do
			if [ $((round % 2)) = 1 ]; then
				before=$(restarts "$pod")
				kill_process "$pod" millrace
				eventually restarted "$pod" "$before"
			else # a container that died lately is started late, so the next one is fresh
				k delete pod "$pod" --grace-period 0 --force >/dev/null 2>&1
			fi
			settled
		done
	done
	echo "round $round ($SECONDS s)"
done

step "RabbitMQ's process killed, and PostgreSQL's"
phase "servers killed"
for server in rabbitmq/beam.smp postgres/postgres; do
	pod=millrace-demo-${server%/*}-0
	before=$(restarts $pod)
	kill_process $pod "${server#*/}"
	eventually restarted $pod "$before"
	k wait --for=condition=Ready pod/$pod --timeout 2m >/dev/null
	sleep 3
done

if [ "${NEXT:-yes}" != no ]; then
	step "an upgrade with a migration"
	sleep 5
	schema() { sql "SELECT max(version) FROM schema_migrations"; }
	old=$(schema)
	phase "upgrade with a migration"
	began=$SECONDS
	upgrade --set image.tag=next
	echo "schema $old before, $(schema) after, $((SECONDS - began)) s"
	[ "$(schema)" = $((old + 1)) ]

	step "and the way back, as KUBERNETES.md has it"
	phase -clean "the way back"
	began=$SECONDS
	k scale deployment/millrace-worker --replicas 0 >/dev/null
	k wait --for=delete pod --selector app.kubernetes.io/instance=millrace,app.kubernetes.io/component=worker --timeout 2m >/dev/null
	k apply --filename - >/dev/null <<-Y
		apiVersion: batch/v1
		kind: Job
		metadata: {name: migrate-down}
		spec:
		  backoffLimit: 3
		  template:
		    spec:
		      automountServiceAccountToken: false
		      restartPolicy: OnFailure
		      securityContext: {runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}}
		      containers:
		        - name: down
		          image: millrace:next
		          args: [migrate, down]
		          env: [{name: POSTGRES_URL, valueFrom: {secretKeyRef: {name: millrace-demo, key: postgres}}}]
		          securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
	Y
	k wait --for=condition=Complete job/migrate-down --timeout 2m >/dev/null
	helm --namespace $ns rollback millrace --wait --timeout 5m >/dev/null
	settled
	echo "schema $(schema), $((SECONDS - began)) s"
	[ "$(schema)" = "$old" ]
	[ "$(pods worker | wc -l)" = 3 ]
	k delete job migrate-down >/dev/null
fi

step "scaled from 3 to 1"
sleep 10
phase "scaled from 3 to 1"
upgrade --set api.replicas=1,worker.replicas=1,query.replicas=1
settled
sleep 5
phase -clean end
step "counted"
end

forward() { # WHAT PORT: sets $at to an address that leads there
	k port-forward "$1" --address 127.0.0.1 ":$2" >"$work/forward" 2>&1 &
	forwards+=($!)
	opened() { at=127.0.0.1:$(sed -nE 's/^Forwarding from 127\.0\.0\.1:([0-9]+).*/\1/p' "$work/forward" | grep .); }
	eventually opened
}
status() { curl --silent --output "$work/body" --dump-header "$work/head" --write-out '%{http_code}' --max-time 30 "$@" || true; }

step "an API that asks clients for certificates: probes and metrics have a port of their own"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=millrace-api -addext "subjectAltName=DNS:millrace-api,IP:127.0.0.1" \
	-addext "extendedKeyUsage=serverAuth,clientAuth" -keyout "$work/tls.key" -out "$work/tls.crt" 2>/dev/null
k create secret tls tls --cert "$work/tls.crt" --key "$work/tls.key" >/dev/null
k create secret generic authorities --from-file "ca.crt=$work/tls.crt" >/dev/null
upgrade --set api.tls.secret=tls,api.tls.clientCASecret=authorities
forward service/millrace-api 8080
[ "$(status --cacert "$work/tls.crt" -d '{"message":"nobody"}' "https://$at/log")" = 000 ]
[ "$(status --cacert "$work/tls.crt" --cert "$work/tls.crt" --key "$work/tls.key" -d '{"message":"somebody"}' "https://$at/log")" = 202 ]
forward deployment/millrace-api 8082
[ "$(status "http://$at/ready")" = 200 ]
[ "$(status "http://$at/metrics")" = 200 ]
kill "${forwards[@]}"
forwards=()
upgrade --set api.tls.secret=,api.tls.clientCASecret=

step "RabbitMQ away: what clients get"
k scale statefulset/millrace-demo-rabbitmq --replicas 0 >/dev/null
k wait --for=delete pod/millrace-demo-rabbitmq-0 --timeout 2m >/dev/null
forward service/millrace-api 8080
api=$at
[ "$(status -d '{"message":"away"}' "http://$api/log")" = 503 ]
grep -i '^retry-after: [1-9]' "$work/head"
cat "$work/body"
k get endpointslices --selector kubernetes.io/service-name=millrace-api --output 'jsonpath={.items[*].endpoints[*].conditions.ready}' | grep -w true
[ "$(pods api | wc -l)" = 1 ]
k scale statefulset/millrace-demo-rabbitmq --replicas 1 >/dev/null
k rollout status statefulset/millrace-demo-rabbitmq --timeout 2m >/dev/null
taken() { [ "$(status -d '{"message":"back"}' "http://$api/log")" = 202 ]; }
eventually taken
kill "${forwards[@]}"

step "removed"
helm --namespace $ns uninstall millrace --wait --timeout 2m >/dev/null
k delete pod millrace-test >/dev/null # of helm test; Helm leaves it
none_left() { # pods end within their grace
	left=$(k get all,secrets,configmaps,pdb,networkpolicies,serviceaccounts --selector app.kubernetes.io/instance=millrace --output name)
	[ -z "$left" ]
}
eventually none_left || {
	echo "kube: left behind: $left" >&2
	exit 1
}
step ok
