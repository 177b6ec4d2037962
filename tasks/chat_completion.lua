-- What apps call: a model of this server as a whole. A request is the body of a chat completion; the
-- server makes the prompt of it, with the model's own template and processors, and runs the model's
-- own graph.

local model = unit {
    name = "model", kind = "llm", to_user = "text",
    outputs = { text = { streamed = true } },
}

return task {
    name = "chat_completion",

    requests = {
        chat = function() return { messages = array {} } end,
    },

    invoke = function(request)
        return { text = model { body = request }.text }
    end,
}
