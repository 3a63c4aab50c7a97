package reference

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// pod names one object in every place where a pod can, each by the place's name.
const pod = `
metadata: {name: p}
spec:
  imagePullSecrets: [{name: s-pull}, {name: ""}]
  initContainers: [{envFrom: [{secretRef: {name: s-init-from}}, {configMapRef: {name: m-init-from}}]}]
  containers: [{env: [{name: A, valueFrom: {secretKeyRef: {name: s-env}}}, {name: B, valueFrom: {configMapKeyRef: {name: m-env}}}, {name: C, value: c}]}]
  ephemeralContainers: [{envFrom: [{secretRef: {name: s-debug}}, {configMapRef: {name: m-debug}}]}]
  resourceClaims: [{name: a, resourceClaimName: r-named}, {name: b, resourceClaimTemplateName: t}, {name: c, resourceClaimTemplateName: t}]
  volumes:
  - {name: v, secret: {secretName: s-volume}}
  - {name: v, azureFile: {secretName: s-azure}}
  - {name: v, cephfs: {secretRef: {name: s-ceph}}}
  - {name: v, cinder: {secretRef: {name: s-cinder}}}
  - {name: v, flexVolume: {secretRef: {name: s-flex}}}
  - {name: v, rbd: {secretRef: {name: s-rbd}}}
  - {name: v, scaleIO: {secretRef: {name: s-scaleio}}}
  - {name: v, iscsi: {secretRef: {name: s-iscsi}}}
  - {name: v, storageos: {secretRef: {name: s-storageos}}}
  - {name: v, csi: {driver: d, nodePublishSecretRef: {name: s-csi}}}
  - {name: v, csi: {driver: d}}
  - {name: v, configMap: {name: m-volume}}
  - {name: v, projected: {sources: [{secret: {name: s-projected}}, {configMap: {name: m-projected}}]}}
  - {name: v, persistentVolumeClaim: {claimName: c-claim}}
  - {name: scratch, ephemeral: {}}
  - {name: v, emptyDir: {}}
status:
  resourceClaimStatuses: [{name: b, resourceClaimName: r-made}, {name: c}]
  extendedResourceClaimStatus: {resourceClaimName: r-extended}
`

func parse(t *testing.T, text string, into any) {
	t.Helper()
	if err := yaml.Unmarshal([]byte(text), into); err != nil {
		t.Fatal(err)
	}
}

func TestEveryPlace(t *testing.T) {
	var p corev1.Pod
	parse(t, pod, &p)
	for name, test := range map[string]struct {
		walk func(*corev1.Pod, Visit) bool
		want string
	}{
		"secrets": {Secrets, "s-azure s-ceph s-cinder s-csi s-debug s-env s-flex s-init-from s-iscsi s-projected s-pull s-rbd s-scaleio s-storageos s-volume"},
		"maps":    {ConfigMaps, "m-debug m-env m-init-from m-projected m-volume"},
		"claims":  {VolumeClaims, "c-claim p-scratch"},
		"devices": {ResourceClaims, "r-extended r-made r-named"},
	} {
		var got []string
		if !test.walk(&p, func(n string) bool { got = append(got, n); return true }) {
			t.Errorf("%s: the walk ended early", name)
		}
		slices.Sort(got)
		if s := strings.Join(got, " "); s != test.want {
			t.Errorf("%s: %s", name, s)
		}
		for _, stop := range got {
			if test.walk(&p, func(n string) bool { return n != stop }) {
				t.Errorf("%s: the walk went past %s", name, stop)
			}
		}
	}
}

func TestVolumeSecrets(t *testing.T) {
	for source, want := range map[string]string{
		"csi: {driver: d, nodePublishSecretRef: {namespace: ns, name: a}, nodeStageSecretRef: {namespace: ns, name: b}, nodeExpandSecretRef: {namespace: ns, name: c}, controllerPublishSecretRef: {namespace: ns, name: x}}": "ns/a ns/b ns/c",
		"azureFile: {secretName: a}":                       "own/a",
		"azureFile: {secretName: a, secretNamespace: ns}":  "ns/a",
		"cephfs: {secretRef: {name: a}}":                   "own/a",
		"iscsi: {secretRef: {namespace: ns, name: a}}":     "ns/a",
		"cinder: {secretRef: {namespace: ns, name: a}}":    "ns/a",
		"storageos: {secretRef: {namespace: ns, name: a}}": "ns/a",
		"rbd: {}":          "",
		"local: {path: /}": "",
	} {
		var pv corev1.PersistentVolume
		parse(t, "spec: {claimRef: {namespace: own, name: c}, "+source+"}", &pv)
		var got []string
		VolumeSecrets(&pv, func(ns, n string) bool { got = append(got, ns+"/"+n); return true })
		if s := strings.Join(got, " "); s != want {
			t.Errorf("%s: %s", source, s)
		}
	}
}

func TestAny(t *testing.T) {
	for spec, want := range map[string]string{
		"volumes: [{name: v, hostPath: {path: /}}, {name: d, projected: {sources: [{downwardAPI: {}}]}}]": "",
		"serviceAccountName: s":                                                          "serviceaccounts",
		"volumes: [{name: v, configMap: {name: m}}]":                                     "configmaps",
		"volumes: [{name: v, csi: {driver: d}}]":                                         "csidrivers (via CSI volumes)",
		"volumes: [{name: v, glusterfs: {endpoints: e, path: p}}]":                       "endpoints (via glusterFS volumes)",
		"volumes: [{name: v, persistentVolumeClaim: {claimName: c}}]":                    "persistentvolumeclaims",
		"volumes: [{name: v, ephemeral: {}}]":                                            "persistentvolumeclaims (via ephemeral volumes)",
		"volumes: [{name: v, projected: {sources: [{serviceAccountToken: {path: t}}]}}]": "serviceaccounts (via projected volumes)",
		"volumes: [{name: v, projected: {sources: [{}]}}]":                               `error unknown source for projected volume "v"`,
		"volumes: [{name: v}]":                                                           `error unknown volume type for volume  "v"`,
	} {
		var p corev1.Pod
		parse(t, "spec: {"+spec+"}", &p)
		got, err := Any(&p)
		if err != nil {
			got = fmt.Sprint("error ", err)
		}
		if got != want {
			t.Errorf("%s: %s", spec, got)
		}
	}
}
