package torture

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	deployerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/deployer/v1"
	issuerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/issuer/v1"
	typev1 "github.com/sallyport-pki/sallyport/gen/sallyport/type/v1"
	"github.com/sallyport-pki/sallyport/internal/crash"
	"github.com/sallyport-pki/sallyport/tests/lab"
)

// work is what operators and hosts do meanwhile. What becomes of a call is of no interest: the server may be dead.
// One of the points is what they mean to lead to.
func (w *world) work(ctx context.Context, points []crash.Point) {
	p := crash.Point("")
	if len(points) > 0 {
		p = points[w.r.IntN(len(points))]
	}
	call := func(f func(ctx context.Context)) {
		ctx, cancel := context.WithTimeout(ctx, short)
		defer cancel()
		f(ctx)
	}
	for _, h := range w.hosts {
		often := 2
		if h.profile == "public" {
			often = 8 // or no order comes to its end
		}
		if h.profile == "public" && w.patient {
			if often = 40; w.settled(ctx, h) {
				often = 1
			}
		}
		if w.r.IntN(often) == 0 {
			call(func(ctx context.Context) {
				got, _ := w.deployer.RenewDeployment(ctx, &deployerv1.RenewDeploymentRequest{Name: h.Name, Reason: "torture"})
				for _, a := range got.GetAssignments() {
					w.promised[a.GetId()] = max(w.promised[a.GetId()], a.GetGeneration())
				}
			})
		}
	}
	three := w.hosts[2]
	switch {
	case p == crash.FilesBack && three.veto != "":
		_ = os.WriteFile(three.veto, nil, 0o600)
	case three.veto != "":
		_ = os.Remove(three.veto)
	}
	switch h := w.hosts[w.r.IntN(len(w.hosts))]; {
	case p == crash.Withdrawn || p == crash.Forgotten || p == crash.Deployed || p == crash.IntentTold || w.r.IntN(12) == 0:
		call(func(ctx context.Context) { w.redeploy(ctx, h) })
	case p == crash.CAMade || p == crash.CAStored || p == crash.Registered || w.r.IntN(40) == 0:
		call(func(ctx context.Context) { w.newAuthority(ctx, p == crash.Registered) })
	case p == crash.Revoked || p == crash.CRLSigned || p == crash.CRLStored || w.r.IntN(20) == 0:
		call(func(ctx context.Context) { w.revoke(ctx, h) })
	case (p == crash.AgentStored || p == crash.SVIDSigned || w.r.IntN(40) == 0) && w.extra < 60:
		w.newAgent(ctx)
	case w.r.IntN(10) == 0:
		call(func(ctx context.Context) { w.change(ctx, h) })
	}
}

// settled says that nothing is under way at a host.
func (w *world) settled(ctx context.Context, h *host) bool {
	ctx, cancel := context.WithTimeout(ctx, short)
	defer cancel()
	d, err := w.deployer.GetDeployment(ctx, &deployerv1.GetDeploymentRequest{Name: h.Name})
	return err == nil && d.GetDeployment().GetStatus().GetState() == deployerv1.DeploymentState_DEPLOYMENT_STATE_HEALTHY
}

// redeploy withdraws a deployment, or deploys it again.
func (w *world) redeploy(ctx context.Context, h *host) {
	if _, err := w.deployer.DeleteDeployment(ctx, &deployerv1.DeleteDeploymentRequest{Name: h.Name, Reason: "torture"}); err == nil {
		w.tell("withdrew %s", h.Name)
		return
	}
	w.put(ctx, h)
}

func (w *world) put(ctx context.Context, h *host) {
	d := &deployerv1.Deployment{Name: h.Name, Identity: h.Name, Profile: h.profile, KeyType: h.key,
		Targets: []*deployerv1.Target{{Host: h.Name, Connector: h.connector, Settings: h.settings}}}
	if _, err := w.deployer.ApplyDeployment(ctx, &deployerv1.ApplyDeploymentRequest{Deployment: d}); err == nil {
		w.tell("deployed %s", h.Name)
	}
}

// change asks for another type of key.
func (w *world) change(ctx context.Context, h *host) {
	h.key = typev1.KeyType_KEY_TYPE_ECDSA_P256 + typev1.KeyType_KEY_TYPE_ECDSA_P384 - h.key
	w.put(ctx, h)
}

func (w *world) newAuthority(ctx context.Context, public bool) {
	w.extra++
	a := &issuerv1.Authority{Name: fmt.Sprintf("extra-%d", w.extra), Kind: &issuerv1.Authority_Internal{Internal: &issuerv1.InternalAuthority{}}}
	if public {
		a.Kind = &issuerv1.Authority_Acme{Acme: &issuerv1.AcmeAuthority{
			Directory: w.ca.Directory(), Contacts: []string{"mailto:pki@example.com"}, TermsAgreed: true, CaBundlePem: w.ca.CABundlePEM()}}
	}
	_, _ = w.issuer.ApplyAuthority(ctx, &issuerv1.ApplyAuthorityRequest{Authority: a})
}

// revoke takes back what a host has now. What the doctor holds true of revocations, and that the host gets another, is seen later.
func (w *world) revoke(ctx context.Context, h *host) {
	d, err := w.deployer.GetDeployment(ctx, &deployerv1.GetDeploymentRequest{Name: h.Name})
	if err != nil || len(d.GetDeployment().GetStatus().GetAssignments()) == 0 {
		return
	}
	w.extra++
	_, err = w.issuer.RevokeCertificate(ctx, &issuerv1.RevokeCertificateRequest{Fingerprint: d.GetDeployment().GetStatus().GetAssignments()[0].GetServed(),
		Reason: typev1.RevocationReason_REVOCATION_REASON_SUPERSEDED, RequestId: fmt.Sprintf("torture-%d", w.extra)})
	if err == nil {
		w.tell("revoked what %s has", h.Name)
	}
}

// newAgent enrols a host that has nothing to do.
func (w *world) newAgent(ctx context.Context) {
	w.extra++
	name := fmt.Sprintf("extra-%d", w.extra)
	quick, cancel := context.WithTimeout(ctx, 5*short)
	defer cancel()
	made, err := w.deployer.CreateJoinToken(quick, &deployerv1.CreateJoinTokenRequest{Host: name})
	if err != nil {
		return
	}
	h := ok(w.NewHost(name, lab.HostOptions{Server: w.plane.Address}))(w.t)
	token := h.Config + ".token"
	must(w.t, os.WriteFile(token, []byte(made.GetToken()), 0o600))
	_, _ = h.Enroll(quick, token, w.tally.env(0)...)
}

// whole waits until all is done, and holds it against itself.
func (w *world) whole() {
	w.t.Helper()
	begun := time.Now()
	must(w.t, lab.Await(w.t.Context(), 3*time.Minute, "all to be served", func() error {
		ctx, cancel := context.WithTimeout(w.t.Context(), 20*time.Second)
		defer cancel()
		_ = os.Remove(w.hosts[2].veto)
		for _, h := range w.hosts {
			if !h.Running() {
				must(w.t, h.Start(w.tally.env(0)...))
			}
			d, err := w.deployer.GetDeployment(ctx, &deployerv1.GetDeploymentRequest{Name: h.Name})
			if err != nil {
				w.put(ctx, h)
				return err
			}
			if s := d.GetDeployment().GetStatus(); s.GetState() != deployerv1.DeploymentState_DEPLOYMENT_STATE_HEALTHY ||
				s.GetAssignments()[0].GetState() != deployerv1.AssignmentState_ASSIGNMENT_STATE_SERVED {
				return fmt.Errorf("%s: %s %v", h.Name, s.GetMessage(), s.GetAssignments())
			}
		}
		return nil
	}, w.programs()...))
	served := time.Since(begun)
	r := ok(w.plane.CLI(w.t.Context(), "doctor", "--full", "--grace", "3m"))(w.t)
	if r.Code != 0 {
		w.t.Fatalf("sallyport doctor: exit code %d\n%s%s", r.Code, r.Stdout, r.Stderr)
	}
	w.tell("well after %s, %s", served.Round(time.Millisecond), time.Since(begun).Round(time.Millisecond))
	w.t.Logf("after %d kills: served after %s, sound after %s: %s", w.killed, served.Round(time.Millisecond), time.Since(begun).Round(time.Millisecond), strings.Fields(r.Stdout)[0])
	w.outside()
}

// show tells what was done last, and what the programs have said.
func (w *world) show() {
	if !w.t.Failed() {
		return
	}
	w.t.Logf("what was done:\n%s", strings.Join(w.story[max(0, len(w.story)-40):], "\n"))
	for _, p := range append(w.programs(), procs(w.hosts)...) {
		lines := strings.Split(strings.TrimSpace(p.Output()), "\n")
		w.t.Logf("--- %s\n%s", p.Name, strings.Join(lines[max(0, len(lines)-60):], "\n"))
	}
}

// programs are those of the control plane.
func (w *world) programs() (all []*lab.Process) {
	for _, v := range w.control {
		all = append(all, v.proc())
	}
	return all
}

func procs(hosts []*host) (all []*lab.Process) {
	for _, h := range hosts {
		all = append(all, h.Process)
	}
	return all
}
