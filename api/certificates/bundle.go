package certificates

import (
	"fmt"
	"strings"

	certificatesv1 "k8s.io/api/certificates/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/declare"
	"coracle.dev/coracle/api/validate"
)

func trustBundleKind() *api.Kind {
	type bundle = *certificatesv1.ClusterTrustBundle
	return &api.Kind{
		Group: group, Kind: "ClusterTrustBundle", Resource: "clustertrustbundles", Singular: "clustertrustbundle",
		Versions: declare.V1[certificatesv1.ClusterTrustBundle, certificatesv1.ClusterTrustBundleList](),
		Strategy: api.Strategy{
			Validate: api.Checks(func(b bundle) field.ErrorList {
				errs := bundleName(b)
				if b.Spec.SignerName != "" {
					errs = append(errs, SignerName(b.Spec.SignerName, field.NewPath("spec", "signerName"))...)
				}
				return append(errs, anchors(b.Spec.TrustBundle, field.NewPath("spec", "trustBundle"))...)
			}),
			ValidateUpdate: api.ChecksUpdate(func(b, old bundle) field.ErrorList {
				errs := validate.Immutable(b.Spec.SignerName, old.Spec.SignerName, field.NewPath("spec", "signerName"))
				if b.Spec.TrustBundle != old.Spec.TrustBundle {
					errs = append(errs, anchors(b.Spec.TrustBundle, field.NewPath("spec", "trustBundle"))...)
				}
				return errs
			}),
		},
		// What the name must be depends on the signer; see bundleName.
		ValidateName: validate.PathSegment,
		Columns: []api.Column{
			declare.Name(),
			declare.Text("SignerName", certificatesv1.ClusterTrustBundleSpec{}.SwaggerDoc()["signerName"], func(b bundle) any {
				if b.Spec.SignerName == "" {
					return declare.None
				}
				return b.Spec.SignerName
			}),
		},
		Fields: map[string]func(api.Object) string{
			"spec.signerName": api.Field(func(b bundle) string { return b.Spec.SignerName }),
		},
		Indexes: map[string]func(api.Object) []string{
			"signer": api.Values(func(b bundle) []string { return []string{b.Spec.SignerName} }),
		},
	}
}

// bundleName checks that the bundles of a signer, and no others, carry its name
// as a prefix, with the slash turned into a colon.
func bundleName(b *certificatesv1.ClusterTrustBundle) field.ErrorList {
	path := field.NewPath("metadata", "name")
	name, signer := b.Name, b.Spec.SignerName
	if signer == "" {
		if strings.Contains(name, ":") {
			return field.ErrorList{field.Invalid(path, name, "ClusterTrustBundle without signer name must not have \":\" in its name")}
		}
		return validate.DNSSubdomainField(name, path)
	}
	prefix := strings.ReplaceAll(signer, "/", ":") + ":"
	rest, ok := strings.CutPrefix(name, prefix)
	if !ok {
		return field.ErrorList{field.Invalid(path, name, fmt.Sprintf("ClusterTrustBundle for signerName %s must be named with prefix %s", signer, prefix))}
	}
	return validate.Invalids(path, name, validate.DNSSubdomain(rest))
}
