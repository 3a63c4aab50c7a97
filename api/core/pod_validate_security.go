package core

import (
	"fmt"
	"math"
	"regexp"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/component-helpers/node/util/sysctl"

	"coracle.dev/coracle/api/validate"
)

// podSecurity checks the security context that containers inherit.
func (c *podCheck) podSecurity(spec *field.Path) {
	sc := c.s.SecurityContext
	if sc == nil {
		return
	}
	p := spec.Child("securityContext")
	c.id(sc.FSGroup, p, "fsGroup")
	c.id(sc.RunAsUser, p, "runAsUser")
	c.id(sc.RunAsGroup, p, "runAsGroup")
	for i, gid := range sc.SupplementalGroups {
		if gid < 0 || gid > math.MaxInt32 {
			c.add(validate.InRange(gid, 0, math.MaxInt32, p.Child("supplementalGroups").Index(i)))
		}
	}
	c.sysctls(sc.Sysctls, p.Child("sysctls"))
	if sc.FSGroupChangePolicy != nil {
		oneOf(c.report, *sc.FSGroupChangePolicy, p, "fsGroupChangePolicy", corev1.FSGroupChangeAlways, corev1.FSGroupChangeOnRootMismatch)
	}
	c.seccomp(sc.SeccompProfile, p.Child("seccompProfile"))
	c.windows(sc.WindowsOptions, p.Child("windowsOptions"))
	c.appArmor(sc.AppArmorProfile, p.Child("appArmorProfile"))
	if sc.SupplementalGroupsPolicy != nil {
		oneOf(c.report, *sc.SupplementalGroupsPolicy, p, "supplementalGroupsPolicy", corev1.SupplementalGroupsPolicyMerge, corev1.SupplementalGroupsPolicyStrict)
	}
	if sc.SELinuxChangePolicy != nil {
		oneOf(c.report, *sc.SELinuxChangePolicy, p, "seLinuxChangePolicy", corev1.SELinuxChangePolicyMountOption, corev1.SELinuxChangePolicyRecursive)
	}
}

// id checks a user or group number.
func (c *podCheck) id(id *int64, p *field.Path, child string) {
	if id != nil {
		inRange(c.report, *id, 0, math.MaxInt32, p, child)
	}
}

// containerSecurity checks the security context of one container.
func (c *podCheck) containerSecurity(sc *corev1.SecurityContext, p *field.Path) {
	c.id(sc.RunAsUser, p, "runAsUser")
	c.id(sc.RunAsGroup, p, "runAsGroup")
	if sc.ProcMount != nil {
		oneOf(c.report, *sc.ProcMount, p, "procMount", corev1.DefaultProcMount, corev1.UnmaskedProcMount)
		if c.hostUsers && *sc.ProcMount == corev1.UnmaskedProcMount {
			c.invalid(p.Child("procMount"), sc.ProcMount, "`hostUsers` must be false to use `Unmasked`")
		}
	}
	c.seccomp(sc.SeccompProfile, p.Child("seccompProfile"))
	if sc.AllowPrivilegeEscalation != nil && !*sc.AllowPrivilegeEscalation {
		if sc.Privileged != nil && *sc.Privileged {
			c.invalid(p, sc, "cannot set `allowPrivilegeEscalation` to false and `privileged` to true")
		}
		if sc.Capabilities != nil {
			for _, capability := range sc.Capabilities.Add {
				if capability == "CAP_SYS_ADMIN" {
					c.invalid(p, sc, "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN")
				}
			}
		}
	}
	c.windows(sc.WindowsOptions, p.Child("windowsOptions"))
	c.appArmor(sc.AppArmorProfile, p.Child("appArmorProfile"))
}

func (c *podCheck) seccomp(s *corev1.SeccompProfile, p *field.Path) {
	if s == nil {
		return
	}
	if s.Type == "" {
		c.required(p.Child("type"), "type is required when seccompProfile is set")
	} else {
		oneOf(c.report, s.Type, p, "type", corev1.SeccompProfileTypeLocalhost, corev1.SeccompProfileTypeRuntimeDefault, corev1.SeccompProfileTypeUnconfined)
	}
	local := p.Child("localhostProfile")
	switch {
	case s.Type != corev1.SeccompProfileTypeLocalhost:
		if s.LocalhostProfile != nil {
			c.invalid(local, s, "can only be set when seccomp type is Localhost")
		}
	case s.LocalhostProfile == nil:
		c.required(local, "must be set when seccomp type is Localhost")
	default:
		c.descendingPath(*s.LocalhostProfile, local)
	}
}

// maxAppArmorProfile is the longest path, less its end.
const maxAppArmorProfile = 4095

func (c *podCheck) appArmor(a *corev1.AppArmorProfile, p *field.Path) {
	if a == nil {
		return
	}
	local := p.Child("localhostProfile")
	switch a.Type {
	case corev1.AppArmorProfileTypeLocalhost:
		if a.LocalhostProfile == nil {
			c.required(local, "must be set when AppArmor type is Localhost")
			return
		}
		profile := *a.LocalhostProfile
		if strings.TrimSpace(profile) != profile {
			c.invalid(local, profile, "must not be padded with whitespace")
		} else if profile == "" {
			c.required(local, "must be set when AppArmor type is Localhost")
		}
		if len(profile) > maxAppArmorProfile {
			c.addOne(field.TooLong(local, "", maxAppArmorProfile))
		}
	case corev1.AppArmorProfileTypeRuntimeDefault, corev1.AppArmorProfileTypeUnconfined:
		if a.LocalhostProfile != nil {
			c.invalid(local, a.LocalhostProfile, "can only be set when AppArmor type is Localhost")
		}
	case "":
		c.required(p.Child("type"), "type is required when appArmorProfile is set")
	default:
		oneOf(c.report, a.Type, p, "type", corev1.AppArmorProfileTypeLocalhost, corev1.AppArmorProfileTypeRuntimeDefault, corev1.AppArmorProfileTypeUnconfined)
	}
}

const (
	maxSysctlName = 253
	sysctlSegment = "[a-z0-9]([-_a-z0-9]*[a-z0-9])?"
	sysctlPattern = "^(" + sysctlSegment + "[\\./])*" + sysctlSegment + "$"
)

var sysctlName = regexp.MustCompile(sysctlPattern)

func (c *podCheck) sysctls(list []corev1.Sysctl, p *field.Path) {
	for i, s := range list {
		at := p.Index(i).Child("name")
		switch {
		case s.Name == "":
			c.required(at, "")
		case len(s.Name) > maxSysctlName || !sysctlName.MatchString(s.Name):
			c.invalid(at, s.Name, fmt.Sprintf("must have at most %d characters and match regex %s", maxSysctlName, sysctlPattern))
		default:
			for _, o := range list[:i] {
				if o.Name == s.Name {
					c.duplicate(at, s.Name)
					break
				}
			}
		}
		switch namespace, _, _ := sysctl.GetNamespace(s.Name); {
		case namespace == sysctl.NetNamespace && c.s.HostNetwork:
			c.invalid(at, s.Name, "may not be specified when 'hostNetwork' is true")
		case namespace == sysctl.IPCNamespace && c.s.HostIPC:
			c.invalid(at, s.Name, "may not be specified when 'hostIPC' is true")
		}
	}
}

func seccompAnnotation(r *report, value string, p *field.Path) {
	switch value {
	case corev1.SeccompProfileRuntimeDefault, corev1.DeprecatedSeccompProfileDockerDefault, corev1.SeccompProfileNameUnconfined:
		return
	}
	if local, ok := strings.CutPrefix(value, corev1.SeccompLocalhostProfileNamePrefix); ok {
		r.descendingPath(local, p)
		return
	}
	r.invalid(p, value, "must be a valid seccomp profile")
}

func appArmorAnnotation(r *report, key, value string, s *corev1.PodSpec, p *field.Path) {
	name := strings.TrimPrefix(key, corev1.DeprecatedAppArmorBetaContainerAnnotationKeyPrefix)
	found := false
	eachContainer(s, func(c *corev1.Container) { found = found || c.Name == name })
	if !found {
		r.invalid(p, name, "container not found")
	}
	switch value {
	case "", corev1.DeprecatedAppArmorBetaProfileRuntimeDefault, corev1.DeprecatedAppArmorBetaProfileNameUnconfined:
		return
	}
	if !strings.HasPrefix(value, corev1.DeprecatedAppArmorBetaProfileNamePrefix) {
		r.invalid(p, value, fmt.Sprintf("invalid AppArmor profile name: %q", value))
	}
}

// profileAnnotationsMatch holds that the old annotations for seccomp and AppArmor, where they are
// still given, say the same as the fields.
func profileAnnotationsMatch(r *report, meta *metav1.ObjectMeta, s *corev1.PodSpec, spec *field.Path) {
	if !hasProfileAnnotation(meta.Annotations) {
		return
	}
	var podArmor *corev1.AppArmorProfile
	if sc := s.SecurityContext; sc != nil {
		if a, ok := meta.Annotations[corev1.SeccompPodAnnotationKey]; ok && sc.SeccompProfile != nil {
			seccompMatches(r, a, sc.SeccompProfile, spec.Child("securityContext", "seccompProfile"))
		}
		podArmor = sc.AppArmorProfile
	}
	eachContainerPath(s, spec, func(c *corev1.Container, at func() *field.Path) {
		if a, ok := meta.Annotations[corev1.SeccompContainerAnnotationKeyPrefix+c.Name]; ok && c.SecurityContext != nil && c.SecurityContext.SeccompProfile != nil {
			seccompMatches(r, a, c.SecurityContext.SeccompProfile, at().Child("securityContext", "seccompProfile"))
		}
	})
	if s.OS != nil && s.OS.Name == corev1.Windows {
		return
	}
	eachContainerPath(s, spec, func(c *corev1.Container, at func() *field.Path) {
		profile := podArmor
		if c.SecurityContext != nil && c.SecurityContext.AppArmorProfile != nil {
			profile = c.SecurityContext.AppArmorProfile
		}
		if a, ok := meta.Annotations[corev1.DeprecatedAppArmorBetaContainerAnnotationKeyPrefix+c.Name]; ok && profile != nil {
			appArmorMatches(r, a, profile, at().Child("securityContext", "appArmorProfile"))
		}
	})
}

func hasProfileAnnotation(annotations map[string]string) bool {
	for key := range annotations {
		if key == corev1.SeccompPodAnnotationKey || strings.HasPrefix(key, corev1.SeccompContainerAnnotationKeyPrefix) ||
			strings.HasPrefix(key, corev1.DeprecatedAppArmorBetaContainerAnnotationKeyPrefix) {
			return true
		}
	}
	return false
}

func seccompMatches(r *report, annotation string, s *corev1.SeccompProfile, p *field.Path) {
	same := true
	switch s.Type {
	case corev1.SeccompProfileTypeUnconfined:
		same = annotation == corev1.SeccompProfileNameUnconfined
	case corev1.SeccompProfileTypeRuntimeDefault:
		same = annotation == corev1.SeccompProfileRuntimeDefault || annotation == corev1.DeprecatedSeccompProfileDockerDefault
	case corev1.SeccompProfileTypeLocalhost:
		var local string
		local, same = strings.CutPrefix(annotation, corev1.SeccompLocalhostProfileNamePrefix)
		if same && (s.LocalhostProfile == nil || *s.LocalhostProfile != local) {
			r.forbidden(p.Child("localhostProfile"), "seccomp profile in annotation and field must match")
		}
	}
	if !same {
		r.forbidden(p.Child("type"), "seccomp type in annotation and field must match")
	}
}

func appArmorMatches(r *report, annotation string, a *corev1.AppArmorProfile, p *field.Path) {
	same := true
	switch a.Type {
	case corev1.AppArmorProfileTypeUnconfined:
		same = annotation == corev1.DeprecatedAppArmorBetaProfileNameUnconfined
	case corev1.AppArmorProfileTypeRuntimeDefault:
		same = annotation == corev1.DeprecatedAppArmorBetaProfileRuntimeDefault
	case corev1.AppArmorProfileTypeLocalhost:
		var local string
		local, same = strings.CutPrefix(annotation, corev1.DeprecatedAppArmorBetaProfileNamePrefix)
		if same && (a.LocalhostProfile == nil || *a.LocalhostProfile != local) {
			r.forbidden(p.Child("localhostProfile"), "apparmor profile in annotation and field must match")
		}
	}
	if !same {
		r.forbidden(p.Child("type"), "apparmor type in annotation and field must match")
	}
}
