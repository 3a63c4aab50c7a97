package core

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	content "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api/validate"
)

// containers checks the regular containers.
func (c *podCheck) containers(p *field.Path) {
	list := c.s.Containers
	if len(list) == 0 {
		c.required(p, "")
		return
	}
	for i := range list {
		ct, at := &list[i], p.Index(i)
		c.container(ct, at)
		if c.taken.add(ct.Name) {
			c.duplicate(at.Child("name"), ct.Name)
		}
		c.hooksAndProbes(ct, at)
		c.restartPolicy(ct, at)
	}
	c.uniqueHostPorts(list, p)
}

// initContainers checks init containers and sidecars.
func (c *podCheck) initContainers(spec *field.Path) {
	list := c.s.InitContainers
	if len(list) == 0 {
		return
	}
	p := spec.Child("initContainers")
	for i := range list {
		ct, at := &list[i], p.Index(i)
		c.container(ct, at)
		c.restartPolicy(ct, at)
		if ct.Name != "" && c.taken.add(ct.Name) {
			c.duplicate(at.Child("name"), ct.Name)
		}
		c.uniqueHostPorts(list[i:i+1], p)
		if Restartable(ct) {
			c.hooksAndProbes(ct, at)
			continue
		}
		c.noHooksAndProbes(ct, at)
		for j, policy := range ct.ResizePolicy {
			if policy.RestartPolicy == corev1.RestartContainer {
				c.invalid(at.Child("resizePolicy").Index(j).Child("restartPolicy"), policy.RestartPolicy,
					"must not be set to 'RestartContainer' for non-sidecar initContainers")
			}
		}
	}
}

// noHooksAndProbes refuses, in an init container, what only makes sense of a container that keeps running.
func (c *podCheck) noHooksAndProbes(ct *corev1.Container, p *field.Path) {
	const detail = "may not be set for init containers without restartPolicy=Always"
	if ct.Lifecycle != nil {
		c.forbidden(p.Child("lifecycle"), detail)
	}
	if ct.LivenessProbe != nil {
		c.forbidden(p.Child("livenessProbe"), detail)
	}
	if ct.ReadinessProbe != nil {
		c.forbidden(p.Child("readinessProbe"), detail)
	}
	if ct.StartupProbe != nil {
		c.forbidden(p.Child("startupProbe"), detail)
	}
}

// ephemeralContainers checks the containers that were added for debugging (KEP-277).
func (c *podCheck) ephemeralContainers(spec *field.Path) {
	list := c.s.EphemeralContainers
	if len(list) == 0 {
		return
	}
	targets := c.taken.clone()
	for i := range list {
		e, p := &list[i], spec.Child("ephemeralContainers")
		ct, at := (*corev1.Container)(&e.EphemeralContainerCommon), p.Index(i)
		c.container(ct, at)
		imagePadding(c.report, ct.Image, p, i)
		if c.taken.add(e.Name) {
			c.duplicate(at.Child("name"), e.Name)
		}
		if t := e.TargetContainerName; t != "" && !targets.has(t) {
			c.addOne(field.NotFound(at.Child("targetContainerName"), t))
		}
		c.debugOnly(ct, at)
	}
}

// debugOnly refuses what an ephemeral container cannot have.
func (c *podCheck) debugOnly(ct *corev1.Container, p *field.Path) {
	const detail = "cannot be set for an Ephemeral Container"
	for _, f := range []struct {
		set  bool
		name string
	}{
		{ct.Ports != nil, "ports"},
		{ct.Resources.Limits != nil || ct.Resources.Requests != nil || ct.Resources.Claims != nil, "resources"},
		{ct.ResizePolicy != nil, "resizePolicy"},
		{ct.RestartPolicy != nil, "restartPolicy"},
		{ct.RestartPolicyRules != nil, "restartPolicyRules"},
		{ct.LivenessProbe != nil, "livenessProbe"},
		{ct.ReadinessProbe != nil, "readinessProbe"},
		{ct.StartupProbe != nil, "startupProbe"},
		{ct.Lifecycle != nil, "lifecycle"},
	} {
		if f.set {
			c.forbidden(p.Child(f.name), detail)
		}
	}
	for i, m := range ct.VolumeMounts {
		if m.SubPath != "" {
			c.forbidden(p.Child("volumeMounts").Index(i).Child("subPath"), detail)
		}
		if m.SubPathExpr != "" {
			c.forbidden(p.Child("volumeMounts").Index(i).Child("subPathExpr"), detail)
		}
	}
}

// container checks what containers of every sort have.
func (c *podCheck) container(ct *corev1.Container, p *field.Path) {
	c.needLabel(ct.Name, p, "name")
	c.need(ct.Image, p, "image")
	needOneOf(c.report, ct.TerminationMessagePolicy, p, "terminationMessagePolicy",
		corev1.TerminationMessageReadFile, corev1.TerminationMessageFallbackToLogsOnError)
	if len(ct.Ports) > 0 {
		c.ports(ct.Ports, p.Child("ports"))
	}
	if len(ct.Env) > 0 {
		c.env(ct.Env, p.Child("env"))
	}
	if len(ct.EnvFrom) > 0 {
		c.envFrom(ct.EnvFrom, p.Child("envFrom"))
	}
	if len(ct.VolumeMounts) > 0 {
		c.mounts(ct, p.Child("volumeMounts"))
	}
	if len(ct.VolumeDevices) > 0 {
		c.devices(ct, p.Child("volumeDevices"))
	}
	needOneOf(c.report, ct.ImagePullPolicy, p, "imagePullPolicy", corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever)
	c.resources(&ct.Resources, validate.ContainerResourceName, p)
	if len(ct.ResizePolicy) > 0 {
		c.resizePolicy(ct.ResizePolicy, p.Child("resizePolicy"))
	}
	if ct.SecurityContext != nil {
		c.containerSecurity(ct.SecurityContext, p.Child("securityContext"))
	}
}

// restartPolicy follows KEP-5307 for containers and KEP-753 for sidecars.
func (c *podCheck) restartPolicy(ct *corev1.Container, p *field.Path) {
	rules := ct.RestartPolicyRules
	if ct.RestartPolicy == nil {
		if len(rules) > 0 {
			c.required(p.Child("restartPolicy"), "must specify restartPolicy when restart rules are used")
		}
	} else {
		oneOf(c.report, *ct.RestartPolicy, p, "restartPolicy", corev1.ContainerRestartPolicyAlways,
			corev1.ContainerRestartPolicyNever, corev1.ContainerRestartPolicyOnFailure)
	}
	if len(rules) > 20 {
		c.addOne(field.TooMany(p.Child("restartPolicyRules"), len(rules), 20))
	}
	for i := range rules {
		at := p.Child("restartPolicyRules").Index(i)
		oneOf(c.report, rules[i].Action, at, "action", corev1.ContainerRestartRuleActionRestart, corev1.ContainerRestartRuleActionRestartAllContainers)
		codes := rules[i].ExitCodes
		if codes == nil {
			c.required(at.Child("exitCodes"), "must be specified")
			continue
		}
		at = at.Child("exitCodes")
		oneOf(c.report, codes.Operator, at, "operator", corev1.ContainerRestartRuleOnExitCodesOpIn, corev1.ContainerRestartRuleOnExitCodesOpNotIn)
		if len(codes.Values) > 255 {
			c.addOne(field.TooMany(at.Child("values"), len(codes.Values), 255))
		}
	}
}

// resizePolicy follows KEP-1287.
func (c *podCheck) resizePolicy(list []corev1.ContainerResizePolicy, p *field.Path) {
	var seen names
	for i, policy := range list {
		if seen.add(string(policy.ResourceName)) {
			c.duplicate(p.Index(i), policy.ResourceName)
		}
		c.add(validate.RequiredOneOf(policy.ResourceName, p, corev1.ResourceCPU, corev1.ResourceMemory))
		c.add(validate.RequiredOneOf(policy.RestartPolicy, p, corev1.NotRequired, corev1.RestartContainer))
		if c.s.RestartPolicy == corev1.RestartPolicyNever && policy.RestartPolicy != corev1.NotRequired {
			c.invalid(p, policy.RestartPolicy, "must be 'NotRequired' when pod `restartPolicy` is 'Never'")
		}
	}
}

func (c *podCheck) ports(ports []corev1.ContainerPort, p *field.Path) {
	var seen names
	for i := range ports {
		port, at := &ports[i], p.Index(i)
		if port.Name != "" {
			if m := validate.PortName(port.Name); m != nil {
				c.invalids(at.Child("name"), port.Name, m)
			} else if seen.add(port.Name) {
				c.duplicate(at.Child("name"), port.Name)
			}
		}
		if port.ContainerPort == 0 {
			c.required(at.Child("containerPort"), "")
		} else {
			inRange(c.report, port.ContainerPort, 1, 65535, at, "containerPort")
		}
		if port.HostPort != 0 {
			inRange(c.report, port.HostPort, 1, 65535, at, "hostPort")
		}
		needOneOf(c.report, port.Protocol, at, "protocol", portProtocols...)
	}
}

// portProtocols are those of container, service and endpoint ports.
var portProtocols = []corev1.Protocol{corev1.ProtocolSCTP, corev1.ProtocolTCP, corev1.ProtocolUDP}

// uniqueHostPorts holds that no two ports of containers that run together ask for the same
// port of the host.
func (c *podCheck) uniqueHostPorts(list []corev1.Container, p *field.Path) {
	var seen names
	for i := range list {
		for j, port := range list[i].Ports {
			if port.HostPort == 0 {
				continue
			}
			key := fmt.Sprintf("%s/%s/%d", port.Protocol, port.HostIP, port.HostPort)
			if seen.add(key) {
				c.duplicate(p.Index(i).Child("ports").Index(j).Child("hostPort"), key)
			}
		}
	}
}

func (c *podCheck) env(vars []corev1.EnvVar, p *field.Path) {
	for i := range vars {
		v := &vars[i]
		if v.Name == "" {
			c.required(p.Index(i).Child("name"), "")
		} else if m := content.IsRelaxedEnvVarName(v.Name); m != nil {
			c.invalids(p.Index(i).Child("name"), v.Name, m)
		}
		if v.ValueFrom != nil {
			c.envSource(v, p.Index(i).Child("valueFrom"))
		}
	}
}

// Fields of a pod that the downward API can show.
var (
	envFields    = []string{"metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName", "spec.serviceAccountName", "status.hostIP", "status.hostIPs", "status.podIP", "status.podIPs"}
	volumeFields = []string{"metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"}
)

func (c *podCheck) envSource(v *corev1.EnvVar, p *field.Path) {
	f, n := v.ValueFrom, 0
	if f.FieldRef != nil {
		n++
		c.fieldRef(f.FieldRef, envFields, p.Child("fieldRef"))
	}
	if f.ResourceFieldRef != nil {
		n++
		c.resourceFieldRef(f.ResourceFieldRef, false, p.Child("resourceFieldRef"))
	}
	if f.ConfigMapKeyRef != nil {
		n++
		c.keyRef(f.ConfigMapKeyRef.Name, f.ConfigMapKeyRef.Key, p.Child("configMapKeyRef"))
	}
	if f.SecretKeyRef != nil {
		n++
		c.keyRef(f.SecretKeyRef.Name, f.SecretKeyRef.Key, p.Child("secretKeyRef"))
	}
	if f.FileKeyRef != nil {
		n++
		c.fileKeyRef(f.FileKeyRef, p.Child("fileKeyRef"))
	}
	switch {
	case n == 0:
		c.invalid(p, "", "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`")
	case v.Value != "":
		c.invalid(p, "", "may not be specified when `value` is not empty")
	case n > 1:
		c.invalid(p, "", "may not have more than one field specified at a time")
	}
}

// keyRef checks a reference to a key of a ConfigMap or Secret.
func (c *podCheck) keyRef(name, key string, p *field.Path) {
	c.objectName(name, p, "name", false)
	if key == "" {
		c.required(p.Child("key"), "")
	} else if m := validate.ConfigKey(key); m != nil {
		c.invalids(p.Child("key"), key, m)
	}
}

// fileKeyRef follows KEP-3721.
func (c *podCheck) fileKeyRef(r *corev1.FileKeySelector, p *field.Path) {
	if r.Key == "" {
		c.required(p.Child("key"), "")
	} else {
		c.invalids(p.Child("key"), r.Key, content.IsRelaxedEnvVarName(r.Key))
	}
	c.needLabel(r.VolumeName, p, "volumeName")
	if r.Path == "" {
		c.required(p.Child("path"), "")
	} else {
		c.backsteps(r.Path, p.Child("path"))
	}
}

// envFiles holds that the files that variables are read from lie in an emptyDir.
func (c *podCheck) envFiles(p *field.Path) {
	eachContainerPath(c.s, p, func(ct *corev1.Container, at func() *field.Path) {
		for i := range ct.Env {
			f := ct.Env[i].ValueFrom
			if f == nil || f.FileKeyRef == nil {
				continue
			}
			name := f.FileKeyRef.VolumeName
			place := at().Child("env").Index(i).Child("valueFrom", "fileKeyRef", "volumeName")
			v := slices.IndexFunc(c.s.Volumes, func(v corev1.Volume) bool { return v.Name == name })
			switch {
			case v < 0:
				c.addOne(field.NotFound(place, name))
			case c.s.Volumes[v].EmptyDir == nil:
				c.invalid(place, name, "referenced volume must be of type emptyDir")
			}
		}
	})
}

func (c *podCheck) envFrom(list []corev1.EnvFromSource, p *field.Path) {
	for i := range list {
		e, at := &list[i], p.Index(i)
		if e.Prefix != "" {
			c.invalids(at.Child("prefix"), e.Prefix, content.IsRelaxedEnvVarName(e.Prefix))
		}
		n := 0
		if e.ConfigMapRef != nil {
			n++
			c.envObject(e.ConfigMapRef.Name, at.Child("configMapRef"))
		}
		if e.SecretRef != nil {
			n++
			c.envObject(e.SecretRef.Name, at.Child("secretRef"))
		}
		if n == 0 {
			c.invalid(p, "", "must specify one of: `configMapRef` or `secretRef`")
		} else if n > 1 {
			c.invalid(p, "", "may not have more than one field specified at a time")
		}
	}
}

func (c *podCheck) envObject(name string, p *field.Path) {
	if name == "" {
		c.required(p.Child("name"), "")
		return
	}
	c.objectName(name, p, "name", true)
}

// fieldRef checks a reference to a field of the pod.
func (c *podCheck) fieldRef(r *corev1.ObjectFieldSelector, allowed []string, p *field.Path) {
	if r.APIVersion == "" {
		c.required(p.Child("apiVersion"), "")
		return
	}
	if r.FieldPath == "" {
		c.required(p.Child("fieldPath"), "")
		return
	}
	path, key, subscript := splitSubscript(r.FieldPath)
	if path == "spec.host" { // what v1 clients of long ago called it
		path = "spec.nodeName"
	}
	if err := downwardField(r.APIVersion, path, key, subscript); err != "" {
		c.invalid(p.Child("fieldPath"), r.FieldPath, "error converting fieldPath: "+err)
		return
	}
	if subscript {
		switch path {
		case "metadata.annotations":
			c.add(validate.QualifiedNameField(strings.ToLower(key), p))
		case "metadata.labels":
			c.add(validate.QualifiedNameField(key, p))
		}
		return
	}
	oneOf(c.report, path, p, "fieldPath", allowed...)
}

// splitSubscript splits "metadata.labels['key']".
func splitSubscript(s string) (path, key string, ok bool) {
	rest, ok := strings.CutSuffix(s, "']")
	if !ok {
		return s, "", false
	}
	path, key, ok = strings.Cut(rest, "['")
	if !ok || path == "" {
		return s, "", false
	}
	return path, key, true
}

// downwardField says what is wrong with the name of a pod field, "" if nothing.
func downwardField(version, path, key string, subscript bool) string {
	if version != "v1" {
		return fmt.Sprintf("unsupported pod version: %s", version)
	}
	if subscript {
		if path == "metadata.annotations" || path == "metadata.labels" {
			return ""
		}
		return fmt.Sprintf("field label does not support subscript: %s", path+"['"+key+"']")
	}
	if slices.Contains(envFields, path) || slices.Contains(volumeFields, path) {
		return ""
	}
	switch path {
	case "spec.restartPolicy", "spec.schedulerName", "status.phase":
		return "" // known, though neither variables nor files can have them
	}
	return fmt.Sprintf("field label not supported: %s", path)
}

// Resources of a container that the downward API can show, and the words for their divisors.
var containerFields = []string{"limits.cpu", "limits.ephemeral-storage", "limits.memory", "requests.cpu", "requests.ephemeral-storage", "requests.memory"}

func (c *podCheck) resourceFieldRef(r *corev1.ResourceFieldSelector, volume bool, p *field.Path) {
	huge := strings.HasPrefix(r.Resource, "requests.hugepages-") || strings.HasPrefix(r.Resource, "limits.hugepages-")
	switch {
	case volume && r.ContainerName == "":
		c.required(p.Child("containerName"), "")
	case r.Resource == "":
		c.required(p.Child("resource"), "")
	case !huge:
		oneOf(c.report, r.Resource, p, "resource", containerFields...)
	}
	if r.Divisor.IsZero() {
		return
	}
	divisor := r.Divisor.String()
	const sizes = "only divisor's values 1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are supported with the "
	switch {
	case r.Resource == "limits.cpu" || r.Resource == "requests.cpu":
		if divisor != "1m" && divisor != "1" {
			c.invalid(p.Child("divisor"), r.Resource, "only divisor's values 1m and 1 are supported with the cpu resource")
		}
	case sizeDivisor(divisor):
	case r.Resource == "limits.memory" || r.Resource == "requests.memory":
		c.invalid(p.Child("divisor"), r.Resource, sizes+"memory resource")
	case r.Resource == "limits.ephemeral-storage" || r.Resource == "requests.ephemeral-storage":
		c.invalid(p.Child("divisor"), r.Resource, sizes+"local ephemeral storage resource")
	case huge:
		c.invalid(p.Child("divisor"), r.Resource, sizes+"hugepages resource")
	}
}

func sizeDivisor(s string) bool {
	switch s {
	case "1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei":
		return true
	}
	return false
}

func (c *podCheck) mounts(ct *corev1.Container, p *field.Path) {
	var paths, devices, devicePaths names
	for i := range ct.VolumeDevices {
		devices.add(ct.VolumeDevices[i].Name)
		devicePaths.add(ct.VolumeDevices[i].DevicePath)
	}
	for i := range ct.VolumeMounts {
		m, at := &ct.VolumeMounts[i], p.Index(i)
		c.need(m.Name, at, "name")
		if c.volumes[m.Name] == nil {
			c.addOne(field.NotFound(at.Child("name"), m.Name))
		}
		c.need(m.MountPath, at, "mountPath")
		if paths.add(m.MountPath) {
			c.invalid(at.Child("mountPath"), m.MountPath, "must be unique")
		}
		if devices.has(m.Name) {
			c.invalid(at.Child("name"), m.Name, "must not already exist in volumeDevices")
		}
		if devicePaths.has(m.MountPath) {
			c.invalid(at.Child("mountPath"), m.MountPath, "must not already exist as a path in volumeDevices")
		}
		// Upstream names the list, not the item, for the fields from here on.
		if m.SubPath != "" {
			c.descendingPath(m.SubPath, p.Child("subPath"))
		}
		if m.SubPathExpr != "" {
			if m.SubPath != "" {
				c.invalid(at.Child("subPathExpr"), m.SubPathExpr, "subPathExpr and subPath are mutually exclusive")
			}
			c.descendingPath(m.SubPathExpr, p.Child("subPathExpr"))
		}
		c.mountSharing(ct, m, p)
	}
}

// mountSharing checks propagation and recursive read-only (KEP-3857).
func (c *podCheck) mountSharing(ct *corev1.Container, m *corev1.VolumeMount, p *field.Path) {
	if m.MountPropagation != nil {
		oneOf(c.report, *m.MountPropagation, p, "mountPropagation", corev1.MountPropagationBidirectional,
			corev1.MountPropagationHostToContainer, corev1.MountPropagationNone)
		sc := ct.SecurityContext
		privileged := sc != nil && sc.Privileged != nil && *sc.Privileged
		if *m.MountPropagation == corev1.MountPropagationBidirectional && !privileged {
			c.forbidden(p.Child("mountPropagation"), "Bidirectional mount propagation is available only to privileged containers")
		}
	}
	if m.RecursiveReadOnly == nil {
		return
	}
	switch *m.RecursiveReadOnly {
	case corev1.RecursiveReadOnlyDisabled:
	case corev1.RecursiveReadOnlyEnabled, corev1.RecursiveReadOnlyIfPossible:
		if !m.ReadOnly {
			c.forbidden(p.Child("recursiveReadOnly"), "may only be specified when readOnly is true")
		}
		if m.MountPropagation != nil && *m.MountPropagation != corev1.MountPropagationNone {
			c.forbidden(p.Child("recursiveReadOnly"), "may only be specified when mountPropagation is None or not specified")
		}
	default:
		oneOf(c.report, *m.RecursiveReadOnly, p, "recursiveReadOnly", corev1.RecursiveReadOnlyDisabled,
			corev1.RecursiveReadOnlyEnabled, corev1.RecursiveReadOnlyIfPossible)
	}
}

func (c *podCheck) devices(ct *corev1.Container, p *field.Path) {
	var seen, paths, mounts, mountPaths names
	for i := range ct.VolumeMounts {
		mounts.add(ct.VolumeMounts[i].Name)
		mountPaths.add(ct.VolumeMounts[i].MountPath)
	}
	for i, d := range ct.VolumeDevices {
		at := p.Index(i)
		v := c.volumes[d.Name]
		c.need(d.Name, at, "name")
		if d.Name != "" && seen.add(d.Name) {
			c.invalid(at.Child("name"), d.Name, "must be unique")
		}
		if v == nil {
			c.addOne(field.NotFound(at.Child("name"), d.Name))
		} else if v.PersistentVolumeClaim == nil && v.Ephemeral == nil {
			c.invalid(at.Child("name"), d.Name, "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode")
		}
		c.need(d.DevicePath, at, "devicePath")
		if paths.add(d.DevicePath) {
			c.invalid(at.Child("devicePath"), d.DevicePath, "must be unique")
		}
		if hasBackstep(d.DevicePath) {
			c.invalid(at.Child("devicePath"), d.DevicePath, "can not contain backsteps ('..')")
		}
		if mounts.has(d.Name) {
			c.invalid(at.Child("name"), d.Name, "must not already exist in volumeMounts")
		}
		if mountPaths.has(d.DevicePath) {
			c.invalid(at.Child("devicePath"), d.DevicePath, "must not already exist as a path in volumeMounts")
		}
	}
}
