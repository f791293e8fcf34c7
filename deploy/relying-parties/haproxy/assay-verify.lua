-- Asks assay-verify whether a request may pass. Sets the variables txn.assay_status, txn.assay_machine,
-- txn.assay_permissions and txn.assay_assurance. Without an answer, the status is 503.
core.register_action("assay_verify", { "http-req" }, function(txn)
    local function header(name)
        -- All of them: a request with two tokens is refused.
        local values = {}
        for _, value in pairs(txn.http:req_get_headers()[name] or {}) do
            values[#values + 1] = value
        end
        return values
    end
    local response = core.httpclient():get {
        url = "http://127.0.0.1:9321/",
        headers = {
            ["authorization"] = header("authorization"),
            ["dpop"] = header("dpop"),
            ["x-client-certificate"] = { txn.c:base64(txn.f:ssl_c_der()) },
            ["x-original-method"] = { txn.f:method() },
            ["x-original-url"] = { "https://wiki.example.com" .. txn.f:pathq() },
        },
        timeout = 5000,
    }
    local function answered(name)
        local values = response.headers and response.headers[name]
        return values and values[0] or ""
    end
    local status = response.status or 0
    txn:set_var("txn.assay_status", status == 0 and 503 or status)
    txn:set_var("txn.assay_machine", answered("x-assay-machine"))
    txn:set_var("txn.assay_permissions", answered("x-assay-permissions"))
    txn:set_var("txn.assay_assurance", answered("x-assay-assurance"))
end, 0)
