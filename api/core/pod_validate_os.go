package core

import (
	"fmt"
	"regexp"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api/validate"
)

// operatingSystem checks spec.os, and that nothing is set which the named system has not (KEP-2802).
func (c *podCheck) operatingSystem(p *field.Path) {
	if c.s.OS == nil {
		return
	}
	switch c.s.OS.Name {
	case "":
		c.required(p.Child("os", "name"), "")
	case corev1.Linux:
		c.onlyLinux(p)
	case corev1.Windows:
		c.onlyWindows(p)
	default:
		oneOf(c.report, c.s.OS.Name, p, "os", corev1.Linux, corev1.Windows)
	}
}

func (c *podCheck) onlyLinux(p *field.Path) {
	const detail = "windows options cannot be set for a linux pod"
	if sc := c.s.SecurityContext; sc != nil && sc.WindowsOptions != nil {
		c.forbidden(p.Child("securityContext", "windowsOptions"), detail)
	}
	eachContainerPath(c.s, p, func(ct *corev1.Container, at func() *field.Path) {
		if ct.SecurityContext != nil && ct.SecurityContext.WindowsOptions != nil {
			c.forbidden(at().Child("securityContext", "windowsOptions"), detail)
		}
	})
}

// setField is a field that is set or not.
type setField struct {
	set  bool
	name string
}

// forbidAll refuses the fields that are set.
func (c *podCheck) forbidAll(p func() *field.Path, detail string, fields ...setField) {
	for _, f := range fields {
		if f.set {
			c.forbidden(p().Child(f.name), detail)
		}
	}
}

func (c *podCheck) onlyWindows(p *field.Path) {
	const detail = "cannot be set for a windows pod"
	if sc := c.s.SecurityContext; sc != nil {
		c.forbidAll(func() *field.Path { return p.Child("securityContext") }, detail,
			setField{sc.AppArmorProfile != nil, "appArmorProfile"},
			setField{sc.SELinuxOptions != nil, "seLinuxOptions"},
			setField{sc.SeccompProfile != nil, "seccompProfile"},
			setField{sc.FSGroup != nil, "fsGroup"},
			setField{sc.FSGroupChangePolicy != nil, "fsGroupChangePolicy"},
			setField{len(sc.Sysctls) > 0, "sysctls"},
			setField{sc.RunAsUser != nil, "runAsUser"},
			setField{sc.RunAsGroup != nil, "runAsGroup"},
			setField{sc.SupplementalGroups != nil, "supplementalGroups"},
			setField{sc.SupplementalGroupsPolicy != nil, "supplementalGroupsPolicy"},
			setField{sc.SELinuxChangePolicy != nil, "seLinuxChangePolicy"})
	}
	c.forbidAll(func() *field.Path { return p }, detail,
		setField{c.s.HostUsers != nil, "hostUsers"},
		setField{c.s.HostPID, "hostPID"},
		setField{c.s.HostIPC, "hostIPC"},
		setField{c.s.ShareProcessNamespace != nil, "shareProcessNamespace"})
	eachContainerPath(c.s, p, func(ct *corev1.Container, at func() *field.Path) {
		sc := ct.SecurityContext
		if sc == nil {
			return
		}
		c.forbidAll(func() *field.Path { return at().Child("securityContext") }, detail,
			setField{sc.AppArmorProfile != nil, "appArmorProfile"},
			setField{sc.SELinuxOptions != nil, "seLinuxOptions"},
			setField{sc.SeccompProfile != nil, "seccompProfile"},
			setField{sc.Capabilities != nil, "capabilities"},
			setField{sc.ReadOnlyRootFilesystem != nil, "readOnlyRootFilesystem"},
			setField{sc.Privileged != nil, "privileged"},
			setField{sc.AllowPrivilegeEscalation != nil, "allowPrivilegeEscalation"},
			setField{sc.ProcMount != nil, "procMount"},
			setField{sc.RunAsUser != nil, "runAsUser"},
			setField{sc.RunAsGroup != nil, "runAsGroup"})
	})
}

// windowsHostProcess follows KEP-1981: of a pod, all containers are HostProcess containers or none.
func (c *podCheck) windowsHostProcess(p *field.Path) {
	var pod *bool
	if sc := c.s.SecurityContext; sc != nil && sc.WindowsOptions != nil {
		pod = sc.WindowsOptions.HostProcess
	}
	all, host := 0, 0
	eachContainerPath(c.s, p, func(ct *corev1.Container, at func() *field.Path) {
		all++
		own := pod
		if sc := ct.SecurityContext; sc != nil && sc.WindowsOptions != nil && sc.WindowsOptions.HostProcess != nil {
			own = sc.WindowsOptions.HostProcess
			if pod != nil && *pod != *own {
				c.invalid(at().Child("securityContext", "windowsOptions", "hostProcess"), *own,
					fmt.Sprintf("pod hostProcess value must be identical if both are specified, was %v", *pod))
			}
		}
		if own != nil && *own {
			host++
		}
	})
	if host == 0 {
		return
	}
	if host != all {
		c.invalid(p, "", "If pod contains any hostProcess containers then all containers must be HostProcess containers")
	}
	if !c.s.HostNetwork {
		c.invalid(p.Child("hostNetwork"), false, "hostNetwork must be true if pod contains any hostProcess containers")
	}
}

const (
	maxGMSASpecKiB       = 64
	maxWindowsUserDomain = 256
	maxWindowsUser       = 104
)

var (
	controlCharacters = regexp.MustCompile(`[[:cntrl:]]+`)
	netBIOSDomain     = regexp.MustCompile(`^[^\\/:\*\?"<>|\.][^\\/:\*\?"<>|]{0,14}$`)
	windowsDNSDomain  = regexp.MustCompile(`^[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?)*$`)
	badUserCharacters = regexp.MustCompile(`["/\\:;|=,\+\*\?<>@\[\]]`)
	dotsAndSpaces     = regexp.MustCompile(`^[\. ]+$`)
)

func (c *podCheck) windows(w *corev1.WindowsSecurityContextOptions, p *field.Path) {
	if w == nil {
		return
	}
	if n := w.GMSACredentialSpecName; n != nil {
		if m := validate.DNSSubdomain(*n); m != nil {
			c.invalids(p.Child("gmsaCredentialSpecName"), n, m)
		}
	}
	if s := w.GMSACredentialSpec; s != nil {
		if *s == "" {
			c.invalid(p.Child("gmsaCredentialSpec"), s, "gmsaCredentialSpec cannot be an empty string")
		} else if len(*s) > maxGMSASpecKiB<<10 {
			c.invalid(p.Child("gmsaCredentialSpec"), s, fmt.Sprintf("gmsaCredentialSpec size must be under %d KiB", maxGMSASpecKiB))
		}
	}
	if w.RunAsUserName != nil {
		for _, m := range windowsUser(*w.RunAsUserName) {
			c.invalid(p.Child("runAsUserName"), w.RunAsUserName, m)
		}
	}
}

// windowsUser says what is wrong with "DOMAIN\user".
func windowsUser(name string) (messages []string) {
	say := func(bad bool, format string, args ...any) {
		if bad {
			messages = append(messages, fmt.Sprintf(format, args...))
		}
	}
	switch {
	case name == "":
		return []string{"runAsUserName cannot be an empty string"}
	case controlCharacters.MatchString(name):
		return []string{"runAsUserName cannot contain control characters"}
	case strings.Count(name, `\`) > 1:
		return []string{"runAsUserName cannot contain more than one backslash"}
	}
	domain, user, hasDomain := strings.Cut(name, `\`)
	if !hasDomain {
		domain, user = "", name
	}
	say(len(domain) >= maxWindowsUserDomain, "runAsUserName's Domain length must be under %d characters", maxWindowsUserDomain)
	say(hasDomain && !netBIOSDomain.MatchString(domain) && !windowsDNSDomain.MatchString(domain),
		"runAsUserName's Domain doesn't match the NetBios nor the DNS format")
	say(user == "", "runAsUserName's User cannot be empty")
	say(len(user) > maxWindowsUser, "runAsUserName's User length must not be longer than %d characters", maxWindowsUser)
	say(dotsAndSpaces.MatchString(user), "runAsUserName's User cannot contain only periods or spaces")
	say(badUserCharacters.MatchString(user), `runAsUserName's User cannot contain the following characters: "/\:;|=,+*?<>@[]`)
	return messages
}
