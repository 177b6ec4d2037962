-- A language model behind any server that speaks the OpenAI API. A request carries the body of a
-- chat completion; sizes are estimates, for load and planning only.

local llm = unit {
    name = "llm", kind = "llm", to_user = "text",
    outputs = { text = { streamed = true, bytes = function(a) return a.output_units * 4 end } },
}

return task {
    name = "openai",

    requests = {
        text_to_text = function(sizes)
            return {
                body = { messages = array {} },
                text_in_tokens = sizes.text_in_tokens, text_out_tokens = sizes.text_out_tokens,
            }
        end,
    },

    invoke = function(request)
        return { text = llm {
            units = request.text_in_tokens or 0, output_units = request.text_out_tokens or 0,
            body = request.body, affinity = request.affinity,
        }.text }
    end,
}
