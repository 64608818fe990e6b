package command

import "github.com/spf13/cobra"

// examples teach by what an operator would type. Each command that does something has one; a test runs their arguments through the
// parser.
var examples = map[string]string{
	"sallyport apply":                  "  sallyport apply -f shop.yaml\n  sallyport apply -f site/ --dry-run",
	"sallyport get agents":             "  sallyport get agents\n  sallyport get agents -o wide",
	"sallyport get assignments":        "  sallyport get assignments --host web-1\n  sallyport get assignments --state failed",
	"sallyport get authorities":        "  sallyport get authorities\n  sallyport get authority corp -o yaml",
	"sallyport get certificates":       "  sallyport get certificates --expires-within 30d\n  sallyport get certificates --name shop.example.com",
	"sallyport get deployments":        "  sallyport get deployments --state failed,unverified\n  sallyport get deployment shop -o yaml",
	"sallyport get findings":           "  sallyport get findings\n  sallyport get findings --rule overdue,expired --severity warning",
	"sallyport get hosts":              "  sallyport get hosts --silent-for 2h",
	"sallyport get identities":         "  sallyport get identities --owner web-team@example.com",
	"sallyport get profiles":           "  sallyport get profile web -o yaml",
	"sallyport get requests":           "  sallyport get requests --state ordering,ordered\n  sallyport get requests --identity shop -o wide",
	"sallyport get tokens":             "  sallyport get tokens",
	"sallyport describe agent":         "  sallyport describe agent web-1",
	"sallyport describe authority":     "  sallyport describe authority corp",
	"sallyport describe certificate":   "  sallyport describe certificate 383a390f9dd54740",
	"sallyport describe deployment":    "  sallyport describe deployment shop",
	"sallyport describe host":          "  sallyport describe host web-1",
	"sallyport describe identity":      "  sallyport describe identity shop",
	"sallyport describe profile":       "  sallyport describe profile web",
	"sallyport describe request":       "  sallyport describe request 01a2066b-508e-79d3-9c8b-e803877cfcb7-1-1",
	"sallyport watch deployment":       "  sallyport watch deployment shop --timeout 5m",
	"sallyport renew deployment":       "  sallyport renew deployment shop --reason \"nginx repaired\"\n  sallyport renew deployment shop --host web-1",
	"sallyport delete agent":           "  sallyport delete agent web-1 --reason \"machine scrapped\"",
	"sallyport delete authority":       "  sallyport delete authority corp-old",
	"sallyport delete deployment":      "  sallyport delete deployment shop",
	"sallyport delete identity":        "  sallyport delete identity shop",
	"sallyport delete profile":         "  sallyport delete profile web-old",
	"sallyport delete token":           "  sallyport delete token d25e3dd3b8314839 --yes",
	"sallyport explain":                "  sallyport explain deployment\n  sallyport explain authority.acme",
	"sallyport token create":           "  sallyport token create --host web-1 --quiet >web-1.token",
	"sallyport token list":             "  sallyport token list",
	"sallyport token revoke":           "  sallyport token revoke d25e3dd3b8314839",
	"sallyport agent list":             "  sallyport agent list",
	"sallyport agent lock":             "  sallyport agent lock web-1 --reason \"INC-17: stolen\"",
	"sallyport agent unlock":           "  sallyport agent unlock web-1 --reason \"INC-17: found\"",
	"sallyport agent remove":           "  sallyport agent remove web-1 --reason \"machine scrapped\"",
	"sallyport certificate list":       "  sallyport certificate list --host web-1",
	"sallyport certificate revoke":     "  sallyport certificate revoke 383a390f9dd54740 --reason key-compromise --comment \"INC-17\"",
	"sallyport request list":           "  sallyport request list --state ordering,ordered",
	"sallyport request cancel":         "  sallyport request cancel 01a2066b-508e-79d3-9c8b-e803877cfcb7-1-1 --reason \"no longer wanted\"",
	"sallyport authority list":         "  sallyport authority list",
	"sallyport authority crl":          "  sallyport authority crl corp\n  sallyport authority crl corp -o pem >corp.crl",
	"sallyport audit checkpoint":       "  sallyport audit checkpoint -o today.checkpoint\n  sallyport audit checkpoint --older today.checkpoint",
	"sallyport audit export":           "  sallyport audit export -o audit.jsonl",
	"sallyport audit key":              "  sallyport audit key >audit.key",
	"sallyport audit list":             "  sallyport audit list --subject deployments/shop --since 2h\n  sallyport audit list --type issuer.request. --result refused",
	"sallyport audit prove":            "  sallyport audit prove 21 --key audit.key -o proof.json",
	"sallyport audit tail":             "  sallyport audit tail -f\n  sallyport audit tail -f --from 4711 -o json",
	"sallyport audit verify":           "  sallyport audit verify --key audit.key audit.jsonl\n  sallyport audit verify --key audit.key --older today.checkpoint audit.jsonl",
	"sallyport doctor":                 "  sallyport doctor\n  sallyport doctor --full --grace 1m",
	"sallyport serve":                  "  sallyport serve --data ./data\n  sallyport serve --config /etc/sallyport/serve.yaml",
	"sallyport backup":                 "  sallyport backup --config /etc/sallyport/serve.yaml --out /var/backups/sallyport/\n  sallyport backup --data /var/lib/sallyport --out FILE --recipient age1...",
	"sallyport backup verify":          "  sallyport backup verify /var/backups/sallyport/FILE",
	"sallyport restore":                "  sallyport restore --config /etc/sallyport/serve.yaml FILE\n  sallyport restore --data /var/lib/sallyport --identity-file backup.key FILE",
	"sallyport trust init":             "  sallyport trust init --dir /etc/sallyport/trust --trust-domain sallyport.example.com",
	"sallyport trust issue":            "  sallyport trust issue operator/alice --data /var/lib/sallyport --out alice/\n  sallyport trust issue service/issuer --dir /etc/sallyport/trust --out /etc/sallyport/identity/issuer",
	"sallyport trust renew":            "  sallyport trust renew --dir /etc/sallyport/trust /etc/sallyport/identity",
	"sallyport config get-contexts":    "  sallyport config get-contexts",
	"sallyport config current-context": "  sallyport config current-context",
	"sallyport config use-context":     "  sallyport config use-context site",
	"sallyport config set-context":     "  sallyport config set-context site --server sallyport.example.com:8443 --identity alice/",
	"sallyport config delete-context":  "  sallyport config delete-context site",
	"sallyport config view":            "  sallyport config view",
	"sallyport version":                "  sallyport version",
}

// teach gives each command below cmd its example.
func teach(cmd *cobra.Command) {
	cmd.Example = examples[cmd.CommandPath()]
	for _, c := range cmd.Commands() {
		teach(c)
	}
}
