package rollout

import (
	"slices"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/pki"
)

// Want says what the certificates of a deployment must be, given what its profile allows and which names its identity has.
// Its errors name the field that does not fit.
func Want(d Deployment, allowed []pki.KeyType, has pki.Names) (Wanted, error) {
	w := Wanted{Identity: d.Identity, Profile: d.Profile, KeyType: d.KeyType, Names: d.Names}
	switch {
	case len(allowed) == 0:
		return w, fault.Invalid("deployment.profile", "profile %q allows no key type", d.Profile)
	case w.KeyType == "" && slices.Contains(allowed, d.Wanted.KeyType) && d.Wanted.Profile == d.Profile:
		w.KeyType = d.Wanted.KeyType // a profile that only lists its key types in another order changes nothing
	case w.KeyType == "":
		w.KeyType = allowed[0]
	case !slices.Contains(allowed, w.KeyType):
		return w, fault.Invalid("deployment.key_type", "profile %q does not allow %s: want one of %v", d.Profile, w.KeyType, allowed)
	}
	if !slices.Contains(pki.KeyTypes, w.KeyType) {
		return w, fault.Invalid("deployment.profile", "profile %q wants keys of type %q, which agents cannot make", d.Profile, w.KeyType)
	}
	if w.Names.Len() == 0 {
		w.Names = has
	}
	if w.Names.Len() == 0 {
		return w, fault.Invalid("deployment.identity", "identity %q has no names", d.Identity)
	}
	for _, name := range w.Names.Strings() {
		if !slices.Contains(has.Strings(), name) {
			return w, fault.Invalid("deployment.names", "identity %q does not have the name %q", d.Identity, name)
		}
	}
	return w, nil
}
