package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"coracle.dev/coracle/container"
	"coracle.dev/coracle/container/seccomp"
	"coracle.dev/coracle/node/record"
	"coracle.dev/coracle/volume"
)

// sandboxConfig describes a pod's sandbox to the runtime. Its message, if it fails, is
// that of a FailedCreatePodSandBox event.
func sandboxConfig(pod *corev1.Pod, id string, attempt int, dns container.DNS, clusterDomain, logRoot, owner string) (container.SandboxConfig, error) {
	_, _, kernelName, err := hostnames(pod, clusterDomain)
	if err != nil {
		return container.SandboxConfig{}, err
	}
	cfg := container.SandboxConfig{
		ID: id, Hostname: kernelName, DNS: dns,
		Cgroup: podCgroup(pod), Resources: podResources(pod),
		LogDir: record.LogDir(logRoot, pod.Namespace, pod.Name, pod.UID),
		Labels: record.SandboxLabels(pod, attempt),
	}
	cfg.Labels[record.Owner] = owner
	cfg.Labels[record.Grace] = strconv.FormatInt(int64(podGrace(pod).Seconds()), 10)
	cfg.Namespaces = namespaces(pod)
	if sc := pod.Spec.SecurityContext; sc != nil {
		for _, s := range sc.Sysctls {
			if cfg.Sysctls == nil {
				cfg.Sysctls = map[string]string{}
			}
			cfg.Sysctls[sysctlName(s.Name)] = s.Value
		}
	}
	return cfg, nil
}

func namespaces(pod *corev1.Pod) container.Namespaces {
	n := container.Namespaces{
		Net: container.NamespaceSandbox, IPC: container.NamespaceSandbox, PID: container.NamespaceContainer,
	}
	if pod.Spec.HostNetwork {
		n.Net = container.NamespaceHost
	}
	if pod.Spec.HostIPC {
		n.IPC = container.NamespaceHost
	}
	switch {
	case pod.Spec.HostPID:
		n.PID = container.NamespaceHost
	case isTrue(pod.Spec.ShareProcessNamespace):
		n.PID = container.NamespaceSandbox
	}
	return n
}

// sysctlName writes a sysctl with dots; with slashes, dots are part of a name.
func sysctlName(s string) string {
	if i := strings.IndexAny(s, "./"); i < 0 || s[i] == '.' {
		return s
	}
	return strings.NewReplacer("/", ".", ".", "/").Replace(s)
}

// launch is what is known when a container is about to be made.
type launch struct {
	pod       *corev1.Pod // with the sandbox's addresses
	spec      *corev1.Container
	role      record.Role
	id        string
	attempt   int
	sandboxID string
	image     container.Image
	env       []variable
	mounts    map[string]volume.Mount
	// etcHosts and messageFile are host files, "" for none.
	etcHosts, messageFile string
	// target is the container whose processes an ephemeral one sees, "" for its own.
	target string
	// memory of the machine, for the order in which the kernel kills.
	memory      int64
	seccompRoot string
	// subPath makes one subPath of a volume safe to mount.
	subPath func(ctx context.Context, m volume.Mount, volumeName string, index int, subPath string) (string, error)
}

// config describes a container to the runtime. Its errors are messages of a
// CreateContainerConfigError.
func (l *launch) config(ctx context.Context) (container.ContainerConfig, error) {
	env := newVariables()
	for _, v := range l.env {
		env.set(v.name, v.value)
	}
	cfg := container.ContainerConfig{
		ID: l.id, SandboxID: l.sandboxID, Image: l.image.ID,
		Args: l.image.Config.Command(expandAll(l.spec.Command, env), expandAll(l.spec.Args, env)),
		Cwd:  l.spec.WorkingDir,
		// A sandbox without processes of its own has no network address to name; the rest is the runtime's.
		Resources: containerResources(l.pod, l.spec), OOMScoreAdj: oomScoreAdj(l.pod, l.spec, l.memory),
		TargetPID: l.target,
		Stdin:     l.spec.Stdin, StdinOnce: l.spec.StdinOnce, TTY: l.spec.TTY,
		Log: container.LogConfig{Path: record.LogPath(l.spec.Name, l.attempt)},
		Labels: record.ID{Namespace: l.pod.Namespace, Pod: l.pod.Name, UID: l.pod.UID,
			Container: l.spec.Name, Role: l.role, Attempt: l.attempt}.Labels(),
	}
	cfg.Labels[record.Image] = l.spec.Image
	if l.messageFile != "" {
		cfg.Labels[record.MessagePath] = l.messageFile
	}
	for _, v := range env.list {
		cfg.Env = append(cfg.Env, v.name+"="+v.value)
	}
	if lc := l.spec.Lifecycle; lc != nil && lc.StopSignal != nil {
		cfg.StopSignal = string(*lc.StopSignal)
	}
	if err := l.security(&cfg); err != nil {
		return cfg, err
	}
	return cfg, l.addMounts(ctx, &cfg)
}

// effective is the security context of a container: its own fields before its pod's.
type effective struct {
	user, group  *int64
	nonRoot      *bool
	seccomp      *corev1.SeccompProfile
	appArmor     *corev1.AppArmorProfile
	own          corev1.SecurityContext
	supplemental []int64
	strict       bool
}

func effectiveSecurity(pod *corev1.Pod, c *corev1.Container) effective {
	var e effective
	if p := pod.Spec.SecurityContext; p != nil {
		e.user, e.group, e.nonRoot = p.RunAsUser, p.RunAsGroup, p.RunAsNonRoot
		e.seccomp, e.appArmor = p.SeccompProfile, p.AppArmorProfile
		e.supplemental = p.SupplementalGroups
		if p.FSGroup != nil {
			e.supplemental = append(append([]int64{}, e.supplemental...), *p.FSGroup)
		}
		e.strict = p.SupplementalGroupsPolicy != nil && *p.SupplementalGroupsPolicy == corev1.SupplementalGroupsPolicyStrict
	}
	s := c.SecurityContext
	if s == nil {
		return e
	}
	e.own = *s
	if s.RunAsUser != nil {
		e.user = s.RunAsUser
	}
	if s.RunAsGroup != nil {
		e.group = s.RunAsGroup
	}
	if s.RunAsNonRoot != nil {
		e.nonRoot = s.RunAsNonRoot
	}
	if s.SeccompProfile != nil {
		e.seccomp = s.SeccompProfile
	}
	if s.AppArmorProfile != nil {
		e.appArmor = s.AppArmorProfile
	}
	return e
}

// security sets user, capabilities and filters.
func (l *launch) security(cfg *container.ContainerConfig) error {
	e := effectiveSecurity(l.pod, l.spec)
	if err := verifyNonRoot(l.pod, l.spec, e, l.image.Config.User); err != nil {
		return err
	}
	cfg.User.UID, cfg.User.GID = id32(e.user), id32(e.group)
	for _, g := range e.supplemental {
		cfg.User.Groups = append(cfg.User.Groups, uint32(g))
	}
	cfg.User.StrictGroups = e.strict
	cfg.Privileged = isTrue(e.own.Privileged)
	cfg.ReadonlyRootfs = isTrue(e.own.ReadOnlyRootFilesystem)
	cfg.NoNewPrivileges = e.own.AllowPrivilegeEscalation != nil && !*e.own.AllowPrivilegeEscalation
	cfg.UnmaskedProc = e.own.ProcMount != nil && *e.own.ProcMount == corev1.UnmaskedProcMount
	if c := e.own.Capabilities; c != nil {
		for _, name := range c.Add {
			cfg.Capabilities.Add = append(cfg.Capabilities.Add, string(name))
		}
		for _, name := range c.Drop {
			cfg.Capabilities.Drop = append(cfg.Capabilities.Drop, string(name))
		}
	}
	if cfg.Privileged {
		return nil // no filter applies
	}
	if p := e.appArmor; p != nil {
		switch p.Type {
		case corev1.AppArmorProfileTypeLocalhost:
			cfg.AppArmor = *p.LocalhostProfile
		case corev1.AppArmorProfileTypeUnconfined:
			cfg.AppArmor = "unconfined"
		}
	}
	return l.seccomp(cfg, e.seccomp)
}

func (l *launch) seccomp(cfg *container.ContainerConfig, p *corev1.SeccompProfile) error {
	if p == nil {
		return nil
	}
	switch p.Type {
	case corev1.SeccompProfileTypeRuntimeDefault:
		cfg.Seccomp.Mode = container.SeccompDefault
	case corev1.SeccompProfileTypeLocalhost:
		if p.LocalhostProfile == nil {
			return errors.New("localhostProfile must be set if seccompProfile type is Localhost.")
		}
		file := filepath.Join(l.seccompRoot, filepath.Clean("/"+*p.LocalhostProfile))
		data, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("cannot load seccomp profile %q: %v", file, err)
		}
		profile, err := seccomp.Parse(data, nil)
		if err != nil {
			return fmt.Errorf("decoding seccomp profile failed: %w", err)
		}
		cfg.Seccomp = container.Seccomp{Mode: container.SeccompCustom, Profile: profile}
	}
	return nil
}

// verifyNonRoot refuses a container that must not run as root and would, or might.
func verifyNonRoot(pod *corev1.Pod, c *corev1.Container, e effective, imageUser string) error {
	if !isTrue(e.nonRoot) {
		return nil
	}
	if e.user != nil {
		if *e.user == 0 {
			return fmt.Errorf("container's runAsUser breaks non-root policy (pod: %q, container: %s)", podFullName(pod), c.Name)
		}
		return nil
	}
	name, _, _ := strings.Cut(imageUser, ":")
	if uid, err := strconv.ParseInt(name, 10, 64); name == "" || (err == nil && uid == 0) {
		return fmt.Errorf("container has runAsNonRoot and image will run as root (pod: %q, container: %s)", podFullName(pod), c.Name)
	} else if err != nil {
		return fmt.Errorf("container has runAsNonRoot and image has non-numeric user (%s), cannot verify user is non-root (pod: %q, container: %s)", name, podFullName(pod), c.Name)
	}
	return nil
}

func id32(v *int64) *uint32 {
	if v == nil {
		return nil
	}
	u := uint32(*v)
	return &u
}

// addMounts adds the volumes, /etc/hosts and the termination message file.
func (l *launch) addMounts(ctx context.Context, cfg *container.ContainerConfig) error {
	hosts := l.etcHosts != ""
	env := newVariables()
	for _, v := range l.env {
		env.set(v.name, v.value)
	}
	for i := range l.spec.VolumeMounts {
		vm := &l.spec.VolumeMounts[i]
		vol, ok := l.mounts[vm.Name]
		if !ok {
			return fmt.Errorf("cannot find volume %q to mount into container %q", vm.Name, l.spec.Name)
		}
		m, err := l.mount(ctx, vm, vol, i, env)
		if err != nil {
			return err
		}
		hosts = hosts && m.ContainerPath != "/etc/hosts"
		cfg.Mounts = append(cfg.Mounts, m)
	}
	for i := range l.spec.VolumeDevices {
		d := &l.spec.VolumeDevices[i]
		vol, ok := l.mounts[d.Name]
		if !ok || !vol.Block {
			return fmt.Errorf("cannot find volume %q to pass into container %q", d.Name, l.spec.Name)
		}
		permissions := "mrw"
		if vol.ReadOnly {
			permissions = "mr"
		}
		cfg.Devices = append(cfg.Devices, container.Device{HostPath: vol.HostPath, ContainerPath: d.DevicePath, Permissions: permissions})
	}
	if hosts {
		cfg.Mounts = append(cfg.Mounts, container.Mount{HostPath: l.etcHosts, ContainerPath: "/etc/hosts",
			ReadOnly: isTrue(effectiveSecurity(l.pod, l.spec).own.ReadOnlyRootFilesystem)})
	}
	if l.messageFile != "" {
		cfg.Mounts = append(cfg.Mounts, container.Mount{HostPath: l.messageFile, ContainerPath: l.spec.TerminationMessagePath})
	}
	return nil
}

// mount turns a volumeMount into a mount of the runtime.
func (l *launch) mount(ctx context.Context, vm *corev1.VolumeMount, vol volume.Mount, index int, env *variables) (container.Mount, error) {
	m := container.Mount{
		HostPath: vol.HostPath, Image: vol.Image, ContainerPath: vm.MountPath,
		ReadOnly: vm.ReadOnly || vol.ReadOnly,
	}
	if !filepath.IsAbs(m.ContainerPath) {
		m.ContainerPath = "/" + m.ContainerPath
	}
	if r := vm.RecursiveReadOnly; r != nil && m.ReadOnly {
		m.RecursiveReadOnly = *r != corev1.RecursiveReadOnlyDisabled
	}
	if p := vm.MountPropagation; p != nil {
		switch *p {
		case corev1.MountPropagationHostToContainer:
			m.Propagation = container.PropagationHostToContainer
		case corev1.MountPropagationBidirectional:
			m.Propagation = container.PropagationBidirectional
		}
	}
	sub := vm.SubPath
	if vm.SubPathExpr != "" {
		expanded, err := expandStrict(vm.SubPathExpr, env)
		if err != nil {
			return m, err
		}
		sub = expanded
	}
	switch {
	case sub == "":
	case m.Image != "":
		m.ImageSubPath = sub
	default:
		path, err := l.subPath(ctx, vol, vm.Name, index, sub)
		if err != nil {
			return m, fmt.Errorf("failed to create subPath directory for volumeMount %q of container %q: %w", vm.Name, l.spec.Name, err)
		}
		m.HostPath = path
	}
	return m, nil
}

// expandStrict expands $(NAME) and refuses names that are not set or are set to nothing.
func expandStrict(s string, env *variables) (string, error) {
	var missing []string
	out := expand(s, func(name string) (string, bool) {
		v, ok := env.get(name)
		if !ok || v == "" {
			missing = append(missing, name)
		}
		return v, ok
	})
	if len(missing) > 0 {
		return "", fmt.Errorf("missing value for %q", missing[0])
	}
	return out, nil
}
