package validate

import (
	"k8s.io/apimachinery/pkg/api/validation"
	pathvalidation "k8s.io/apimachinery/pkg/api/validation/path"
	content "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Subdomain is the api.Kind.ValidateName of most kinds: an RFC 1123 subdomain.
func Subdomain(name string, prefix bool) []string {
	if isSubdomain(name) {
		return nil
	}
	return validation.NameIsDNSSubdomain(name, prefix)
}

// Label is the api.Kind.ValidateName of kinds whose name is an RFC 1123 label
// (namespaces, and services since KEP-5311).
func Label(name string, prefix bool) []string {
	if isLabel(name) {
		return nil
	}
	return validation.NameIsDNSLabel(name, prefix)
}

// Label1035 is the api.Kind.ValidateName of kinds whose name is an RFC 1035 label.
func Label1035(name string, prefix bool) []string {
	return validation.NameIsDNS1035Label(name, prefix)
}

// PathSegment is the api.Kind.ValidateName of kinds that allow any name that can stand in a
// URL path (RBAC roles and bindings, PriorityLevelConfiguration's bootstrap names).
func PathSegment(name string, prefix bool) []string {
	return pathvalidation.ValidatePathSegmentName(name, prefix)
}

// DNSLabel says what keeps value from being an RFC 1123 label.
func DNSLabel(value string) []string {
	if isLabel(value) {
		return nil
	}
	return content.IsDNS1123Label(value)
}

// DNSSubdomain says what keeps value from being an RFC 1123 subdomain.
func DNSSubdomain(value string) []string {
	if isSubdomain(value) {
		return nil
	}
	return content.IsDNS1123Subdomain(value)
}

// PortName says what keeps value from being an IANA service name.
func PortName(value string) []string {
	if isPortName(value) {
		return nil
	}
	return content.IsValidPortName(value)
}

// ConfigKey says what keeps value from being a key of a ConfigMap or Secret.
func ConfigKey(value string) []string {
	if isConfigKey(value) {
		return nil
	}
	return content.IsConfigMapKey(value)
}

// QualifiedName says what keeps value from being a label key: a name with an optional DNS prefix.
func QualifiedName(value string) []string {
	if isQualifiedName(value) {
		return nil
	}
	return content.IsQualifiedName(value)
}

// LabelValue says what keeps value from being a label value.
func LabelValue(value string) []string {
	if value == "" || len(value) <= content.LabelValueMaxLength && isLabelText(value) {
		return nil
	}
	return content.IsValidLabelValue(value)
}

// Invalids turns messages on one value into field errors; none for none.
func Invalids(path *field.Path, value any, messages []string) field.ErrorList {
	if len(messages) == 0 {
		return nil
	}
	errs := make(field.ErrorList, 0, len(messages))
	for _, m := range messages {
		errs = append(errs, field.Invalid(path, value, m))
	}
	return errs
}

// DNSLabelField is DNSLabel on a field.
func DNSLabelField(value string, path *field.Path) field.ErrorList {
	return Invalids(path, value, DNSLabel(value))
}

// DNSSubdomainField is DNSSubdomain on a field.
func DNSSubdomainField(value string, path *field.Path) field.ErrorList {
	return Invalids(path, value, DNSSubdomain(value))
}

// QualifiedNameField is QualifiedName on a field.
func QualifiedNameField(value string, path *field.Path) field.ErrorList {
	return Invalids(path, value, QualifiedName(value))
}

// The predicates below accept only what the regular expressions of apimachinery accept,
// several times faster; what they do not accept is asked of those, so that
// the wording of a refusal is theirs.

func lowerOrDigit(c byte) bool { return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' }

func letterOrDigit(c byte) bool { return lowerOrDigit(c) || c >= 'A' && c <= 'Z' }

func isLabel(s string) bool {
	return len(s) <= content.DNS1123LabelMaxLength && isLabelOfAnyLength(s)
}

func isLabelOfAnyLength(s string) bool {
	if s == "" || !lowerOrDigit(s[0]) || !lowerOrDigit(s[len(s)-1]) {
		return false
	}
	for i := 1; i < len(s)-1; i++ {
		if !lowerOrDigit(s[i]) && s[i] != '-' {
			return false
		}
	}
	return true
}

func isSubdomain(s string) bool {
	if len(s) > content.DNS1123SubdomainMaxLength {
		return false
	}
	start := 0
	for i := 0; i < len(s); i++ {
		if s[i] == '.' {
			if !isLabelOfAnyLength(s[start:i]) {
				return false
			}
			start = i + 1
		}
	}
	return isLabelOfAnyLength(s[start:])
}

func isPortName(s string) bool {
	if s == "" || len(s) > 15 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	letter := false
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z':
			letter = true
		case c == '-' && s[i-1] == '-':
			return false
		case c != '-' && (c < '0' || c > '9'):
			return false
		}
	}
	return letter
}

func isConfigKey(s string) bool {
	if s == "" || len(s) > content.DNS1123SubdomainMaxLength || s[0] == '.' {
		return false
	}
	for i := 0; i < len(s); i++ {
		if c := s[i]; !letterOrDigit(c) && c != '-' && c != '_' && c != '.' {
			return false
		}
	}
	return true
}

func isQualifiedName(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] == '/' {
			if !isSubdomain(s[:i]) {
				return false
			}
			s = s[i+1:]
			break
		}
	}
	return len(s) <= 63 && isLabelText(s)
}

// isLabelText accepts letters, digits, '-', '_' and '.' between letters or digits.
func isLabelText(s string) bool {
	if s == "" || !letterOrDigit(s[0]) || !letterOrDigit(s[len(s)-1]) {
		return false
	}
	for i := 1; i < len(s)-1; i++ {
		if c := s[i]; !letterOrDigit(c) && c != '-' && c != '_' && c != '.' {
			return false
		}
	}
	return true
}
