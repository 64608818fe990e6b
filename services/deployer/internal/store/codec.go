package store

import (
	"encoding/asn1"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/sallyport-pki/sallyport/internal/pki"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/rollout"
)

// The forms in which compound values are kept as JSON.
type (
	namesForm struct {
		DNS []string `json:"dns,omitempty"`
		IP  []string `json:"ip,omitempty"`
	}
	targetForm struct {
		Name      string            `json:"name"`
		Host      string            `json:"host"`
		Connector string            `json:"connector"`
		Settings  map[string]string `json:"settings,omitempty"`
	}
	specForm struct {
		Identity string     `json:"identity"`
		Profile  string     `json:"profile"`
		KeyType  string     `json:"key_type"`
		Names    namesForm  `json:"names"`
		Target   targetForm `json:"target"`
	}
)

// encode marshals what cannot fail to be marshalled.
func encode(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("store: %T does not marshal: %v", v, err))
	}
	return string(b)
}

func encodeNames(n pki.Names) string { return encode(namesForm{DNS: n.DNS, IP: n.IPStrings()}) }

func decodeNames(s string) (pki.Names, error) {
	var f namesForm
	if err := json.Unmarshal([]byte(s), &f); err != nil {
		return pki.Names{}, fmt.Errorf("stored names: %w", err)
	}
	return f.names()
}

func (f namesForm) names() (pki.Names, error) {
	n, err := pki.ParseNames(f.DNS, f.IP)
	if err != nil {
		return pki.Names{}, fmt.Errorf("stored names: %w", err)
	}
	return n, nil
}

func encodeTargets(targets []rollout.Target) string {
	forms := make([]targetForm, len(targets))
	for i, t := range targets {
		forms[i] = targetForm(t)
	}
	return encode(forms)
}

func decodeTargets(s string) ([]rollout.Target, error) {
	var forms []targetForm
	if err := json.Unmarshal([]byte(s), &forms); err != nil {
		return nil, fmt.Errorf("stored targets: %w", err)
	}
	targets := make([]rollout.Target, len(forms))
	for i, f := range forms {
		targets[i] = rollout.Target(f)
	}
	return targets, nil
}

func encodeSpec(s rollout.Spec) string {
	return encode(specForm{Identity: s.Wanted.Identity, Profile: s.Wanted.Profile, KeyType: string(s.Wanted.KeyType),
		Names: namesForm{DNS: s.Wanted.Names.DNS, IP: s.Wanted.Names.IPStrings()}, Target: targetForm(s.Target)})
}

func decodeSpec(s string) (rollout.Spec, error) {
	if s == "" {
		return rollout.Spec{}, nil
	}
	var f specForm
	if err := json.Unmarshal([]byte(s), &f); err != nil {
		return rollout.Spec{}, fmt.Errorf("stored assignment: %w", err)
	}
	names, err := f.Names.names()
	if err != nil {
		return rollout.Spec{}, err
	}
	return rollout.Spec{
		Wanted: rollout.Wanted{Identity: f.Identity, Profile: f.Profile, KeyType: pki.KeyType(f.KeyType), Names: names},
		Target: rollout.Target(f.Target),
	}, nil
}

func encodeStrings(s []string) string {
	if s == nil {
		s = []string{}
	}
	return encode(s)
}

func decodeStrings(s string) ([]string, error) {
	var out []string
	if err := json.Unmarshal([]byte(s), &out); err != nil {
		return nil, fmt.Errorf("stored list: %w", err)
	}
	return out, nil
}

func joinDER(chain [][]byte) []byte {
	if len(chain) == 0 {
		return nil
	}
	return slices.Concat(chain...)
}

func splitDER(data []byte) ([][]byte, error) {
	var chain [][]byte
	for len(data) > 0 {
		var v asn1.RawValue
		rest, err := asn1.Unmarshal(data, &v)
		if err != nil {
			return nil, fmt.Errorf("stored chain: %w", err)
		}
		chain = append(chain, v.FullBytes)
		data = rest
	}
	return chain, nil
}

// micros keeps durations as times are kept.
func micros(d time.Duration) int64 { return d.Microseconds() }

func duration(us int64) time.Duration { return time.Duration(us) * time.Microsecond }
