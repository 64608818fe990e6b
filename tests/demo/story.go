package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	auditv1 "github.com/sallyport-pki/sallyport/gen/sallyport/audit/v1"
)

// record is what the story reads of an audit record.
type record struct {
	Time    time.Time         `json:"time"`
	Type    string            `json:"type"`
	Subject string            `json:"subject"`
	Facts   map[string]string `json:"facts"`
	Detail  map[string]string `json:"detail"`
}

// about reports whether the record belongs to a deployment, its identity or one of its requests.
func (r record) about(deployment string) bool {
	return r.Subject == "deployments/"+deployment || r.Detail["deployment"] == deployment || r.Detail["identity"] == deployment || r.Facts["identity"] == deployment || r.Facts["deployment"] == deployment
}

// steps are the main job's, in the words of the product; each is shown by the records it leaves.
var steps = []struct {
	text  string
	types []string
}{
	{"an operator applied the deployment", []string{"deployer.deployment.applied"}},
	{"the deployer wrote an assignment", []string{"deployer.assignment.assigned"}},
	{"the agent made the key on its host and sent a CSR", []string{"deployer.assignment.requested"}},
	{"the issuer checked it and obtained the certificate", []string{"issuer.request.issued"}},
	{"the agent installed it, reloaded, and saw it served", []string{"deployer.assignment.served"}},
}

// story tells one pass of a deployment from the audit log: what happened, and when.
type story struct {
	out   io.Writer
	audit auditv1.AuditServiceClient
	next  uint64
}

// tell reads records until the deployment is served or ctx ends. first is the step to begin with.
func (s *story) tell(ctx context.Context, deployment string, first int, start time.Time) error {
	stream, err := s.audit.TailRecords(ctx, &auditv1.TailRecordsRequest{Position: s.next})
	if err != nil {
		return err
	}
	told := first
	for told < len(steps) {
		m, err := stream.Recv()
		if err != nil {
			return fmt.Errorf("reading the audit log: %w", err)
		}
		s.next = m.GetNextPosition()
		for _, raw := range m.GetRecords() {
			var r record
			if err := json.Unmarshal(raw.GetJson(), &r); err != nil {
				return err
			}
			// Records of one batch may stand in any order: a later step implies the earlier.
			for i := told; i < len(steps) && r.about(deployment); i++ {
				if slices.Contains(steps[i].types, r.Type) {
					fmt.Fprintf(s.out, "  %d. %6.0f ms  %-52s %s\n", i+1, float64(r.Time.Sub(start))/1e6, steps[i].text, remark(r))
					told = i + 1
					break
				}
			}
		}
	}
	return nil
}

func remark(r record) string {
	var parts []string
	for _, name := range []string{"host", "authority", "fingerprint"} {
		value := r.Detail[name]
		if value == "" {
			value = r.Facts[name]
		}
		if name == "fingerprint" && len(value) > 12 {
			value = value[:12]
		}
		if value != "" {
			parts = append(parts, value)
		}
	}
	return strings.Join(parts, " ")
}
